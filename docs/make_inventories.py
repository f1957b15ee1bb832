"""Build Sphinx inventories from plain lists of names, so that the docs build without a network.

A list in ``_inventories/`` holds one ``url ADDRESS`` line, then ``ROLE NAME PLACE`` lines; in the
place, ``$`` stands for the name. Missing a name? The build says which; add a line.
"""

import zlib
from pathlib import Path

HERE = Path(__file__).parent
LISTS = HERE / "_inventories"


def read_list(path: Path) -> tuple[str, list[str]]:
    """Return the address of a list, and the lines of its inventory."""
    url, rows = "", []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        match words:
            case []:
                continue
            case ["url", address]:
                url = address
            case [role, name, place]:
                rows.append(f"{name} {role} 1 {place} -")
            case _:
                raise ValueError(f"{path.name}:{number}: expected 'ROLE NAME PLACE', got {line!r}")
    if not url:
        raise ValueError(f"{path.name}: no 'url ADDRESS' line")
    return url, rows


def build_inventories(folder: Path) -> dict[str, tuple[str, str]]:
    """Write one ``.inv`` per list into ``folder``; return the mapping intersphinx asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for path in sorted(LISTS.glob("*.txt")):
        url, rows = read_list(path)
        header = (
            "# Sphinx inventory version 2\n"
            f"# Project: {path.stem}\n"
            "# Version: \n"
            "# The remainder of this file is compressed using zlib.\n"
        )
        built = folder / f"{path.stem}.inv"
        built.write_bytes(header.encode() + zlib.compress(("\n".join(rows) + "\n").encode()))
        mapping[path.stem] = (url, str(built))
    return mapping
