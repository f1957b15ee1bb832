"""Networks of other libraries, with random weights; nothing is downloaded."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Network", "networks"]

Inputs = tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """A network and what it is run on.

    Attributes:
        name: Library and name.
        make: Makes it.
        make_inputs: Makes its inputs, a batch of one: in order, or by name.
    """

    name: str
    make: Callable[[], nn.Module]
    make_inputs: Callable[[], Inputs]

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs, the same each time."""
        return self.make_inputs()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one sample where an image is the only input; None elsewhere."""
        if isinstance(self.inputs, tuple) and len(self.inputs) == 1:
            (image,) = self.inputs
            if isinstance(image, Tensor) and image.is_floating_point():
                return tuple(image.shape[1:])
        return None

    @property
    def said(self) -> str:
        """The shapes of the inputs in words."""
        if isinstance(self.inputs, Mapping):
            return ", ".join(f"{name} {_said(item)}" for name, item in self.inputs.items())
        return ", ".join(map(_said, self.inputs))


def _said(item: Any) -> str:
    if isinstance(item, list):
        return f"[{', '.join(map(_said, item))}]"
    return "x".join(map(str, item.shape))


def networks(library: str) -> list[Network]:
    """Return the networks of a library: ``"timm"``, ``"torchvision"``, ``"transformers"``.

    ``"tests"`` stands for those of this repository: of its tests and of its models.
    """
    return list(_LIBRARIES[library]())


def _images(*shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    return lambda: tuple(torch.zeros(1, *shape) for shape in shapes)


# timm ----------------------------------------------------------------------------------------

# Of each family the smallest, and one that is made in another way.
TIMM = """
beit_base_patch16_224 halonet_h1 eca_botnext26ts_256 lambda_resnet26t haloregnetz_b test_byobnet
mobileone_s1 gernet_s repvgg_a0 regnetz_b16 resnext26ts cait_xxs24_224 coat_tiny coat_lite_tiny
convit_tiny convmixer_768_32 test_convnext test_convnext3 convnext_zepto_rms_ols convnext_atto_rms
convnext_atto cpubone_nano cpubone_t0 cpubone_b0_bfrobust crossvit_tiny_240 crossvit_9_240
cs3darknet_focus_s darknet17 cspresnext50 sedarknet21 cspnext_tiny davit_tiny deit_tiny_patch16_224
deit_tiny_distilled_patch16_224 deit3_small_patch16_224 densenet121 densenetblur121d dla46x_c dpn48b
edgenext_xx_small edgenext_x_small edgenext_small edgenext_small_rw efficientformer_l1
efficientformerv2_s0 test_efficientnet test_efficientnet_gn test_efficientnet_ln
test_efficientnet_evos mobilenetv2_035 mnasnet_small efficientvim_m1 efficientvit_b0 efficientvit_m0
vit_tiny_patch16_dinov3_qkvb eva02_tiny_patch14_224 vit_small_patch16_dinov3 fasternet_t0 fastvit_t8
fastvit_s12 fastvit_mci0 focalnet_tiny_srf focalnet_tiny_lrf gcvit_xxtiny gcvit_tiny ghostnet_050
ghostnetv3_050 hardcorenas_b hardcorenas_a hgnetv2_b0 hgnet_tiny hiera_tiny_224
hiera_small_abswin_256 hieradet_small hrnet_w18_small iformer_t iformer_m_distilled
inception_next_atto inception_resnet_v2 inception_v3 lcnetv2_small levit_128s levit_conv_128s
lowformer_b0 lowformer_e1 test_mambaout mambaout_femto mambaout_kobe test_coatnet test_maxvit
maxvit_pico_rw_256 coatnet_pico_rw_224 coatnet_nano_cc_224 poolformerv2_s12 poolformer_s12
caformer_s18 convformer_s18 gmlp_ti16_224 gmixer_12_224 resmlp_12_224 mixer_s16_224
mobilenetv3_small_050 lcnet_035 tf_mobilenetv3_small_075 fbnetv3_b mobilenetv5_base mobilevit_xxs
mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small test_nfnet nf_regnet_b0 nf_seresnet26
eca_nfnet_l0 pit_ti_224 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 regnetz_005 regnetv_040
repghostnet_050 repvit_m1 res2next50 resnest14d test_resnet resnet10t resnetblur18 seresnet18
ecaresnext26t_32x4d ecaresnet26t resnetv2_18 rexnet_100 rexnetr_100 selecsls42 legacy_seresnet18
legacy_seresnext26_32x4d sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swiftformer_l1 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small twins_pcpvt_small visformer_tiny
test_vit test_vit2 vit_tiny_patch16_224 vit_xsmall_patch16_clip_224 vit_wee_patch16_reg1_gap_256
vit_dwee_patch16_reg1_gap_256 vit_tiny_r_s16_p8_224 vit_small_r26_s32_224 test_vit_relpos
vit_srelpos_small_patch16_224 vit_relpos_small_patch16_rpn_224 vitamin_small_224 volo_d1_224
ese_vovnet19b_slim_dw vovnet39a eca_vovnet39b legacy_xception xception41p xcit_nano_12_p8_224
xcit_tiny_12_p8_224 csatv2
"""


def _timm() -> Iterator[Network]:
    import timm

    for name in TIMM.split():
        about = timm.get_pretrained_cfg(name, allow_unregistered=True)
        size = about.input_size if about is not None else (3, 224, 224)
        yield Network(f"timm/{name}", partial(timm.create_model, name), _images(tuple(size)))


# torchvision ---------------------------------------------------------------------------------

_CLASSIFIERS = "alexnet maxvit_t mnasnet0_5 shufflenet_v2_x1_0 squeezenet1_1"
_SEGMENTATION = """
deeplabv3_mobilenet_v3_large deeplabv3_resnet50 deeplabv3_resnet101 fcn_resnet50 fcn_resnet101
lraspp_mobilenet_v3_large
"""
_VIDEO = {
    "mc3_18": (3, 8, 56, 56),
    "mvit_v2_s": (3, 16, 224, 224),
    "r2plus1d_18": (3, 8, 56, 56),
    "r3d_18": (3, 8, 56, 56),
    "s3d": (3, 16, 224, 224),
    "swin3d_s": (3, 8, 112, 112),
    "swin3d_t": (3, 8, 112, 112),
}
_FLOW = ("raft_large", "raft_small")
_DETECTION = """
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_resnet50_fpn fcos_resnet50_fpn
keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn retinanet_resnet50_fpn ssd300_vgg16
ssdlite320_mobilenet_v3_large
"""


def _torchvision() -> Iterator[Network]:
    import torchvision

    bare: dict[str, Any] = {"weights": None}
    made: dict[str, tuple[dict[str, Any], Callable[[], Inputs]]] = {}
    for name in _CLASSIFIERS.split():
        made[name] = bare, _images((3, 224, 224))
    for name in _SEGMENTATION.split():
        made[name] = bare | {"weights_backbone": None}, _images((3, 128, 128))
    for name, shape in _VIDEO.items():
        made[name] = bare, _images(shape)
    for name in _FLOW:
        made[name] = bare, _images((3, 128, 128), (3, 128, 128))
    for name in _DETECTION.split():  # a list of images, each without a batch axis
        sizes = {} if name.startswith("ssd") else {"min_size": 320, "max_size": 320}
        options = bare | {"weights_backbone": None} | sizes
        made[name] = options, lambda: ([torch.rand(3, 320, 320)],)
    for name, (options, inputs) in made.items():
        make = partial(torchvision.models.get_model, name, **options)
        yield Network(f"torchvision/{name}", make, inputs)


# transformers --------------------------------------------------------------------------------

_TOKENS = {"input_ids": (1, 64)}
_PAIR = {"input_ids": (1, 64), "decoder_input_ids": (1, 16)}
_PIXELS = {"pixel_values": (1, 3, 224, 224)}
_WAVE = {"input_values": (1, 16_000)}
_FOUR = {"num_hidden_layers": 4}
_SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, **_FOUR}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "vocab_size": 1000}

# Class, what its configuration says beside the defaults, and its inputs.
TRANSFORMERS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, tuple[int, ...]]]] = {
    # Text.
    "Albert": (_SMALL, _TOKENS),
    "Bart": ({"encoder_layers": 2, "decoder_layers": 2, "d_model": 256}, _PAIR),
    "Bert": (_FOUR, _TOKENS),
    "BigBird": (_FOUR, _TOKENS),
    "Bloom": ({"n_layer": 4, "hidden_size": 128}, _TOKENS),
    "ConvBert": (_FOUR, _TOKENS),
    "DebertaV2": (_SMALL, _TOKENS),
    "DistilBert": ({"n_layers": 4}, _TOKENS),
    "Electra": (_FOUR, _TOKENS),
    "FNet": (_FOUR, _TOKENS),
    "Funnel": ({"block_sizes": [2, 2], "d_model": 256}, _TOKENS),
    "GPT2": ({"n_layer": 4}, _TOKENS),
    "GPTNeoX": (_SMALL, _TOKENS),
    "Gemma2": (_GROUPED, _TOKENS),
    "Llama": (_GROUPED, _TOKENS),
    "Mamba": ({**_FOUR, "hidden_size": 256, "vocab_size": 1000}, _TOKENS),
    "Mistral": (_GROUPED, _TOKENS),
    "Mixtral": ({**_GROUPED, "num_local_experts": 4}, _TOKENS),
    "ModernBert": (_SMALL, _TOKENS),
    "MPNet": (_FOUR, _TOKENS),
    "OPT": ({**_FOUR, "hidden_size": 256, "ffn_dim": 512, "num_attention_heads": 8}, _TOKENS),
    "Qwen3": ({**_GROUPED, "head_dim": 32}, _TOKENS),
    "Roberta": (_FOUR, _TOKENS),
    "RoFormer": (_FOUR, _TOKENS),
    "SqueezeBert": (_FOUR, _TOKENS),
    "T5": ({"num_layers": 2}, _PAIR),
    "XLNet": ({"n_layer": 4, "d_model": 256, "n_head": 8, "d_inner": 512}, _TOKENS),
    # Images.
    "Beit": (_FOUR, _PIXELS),
    "Bit": ({}, _PIXELS),
    "ConvNextV2": ({}, _PIXELS),
    "Cvt": ({}, _PIXELS),
    "DPT": ({**_FOUR, "image_size": 224, "backbone_out_indices": [0, 1, 2, 3]}, _PIXELS),
    "Dinov2": (_FOUR, _PIXELS),
    "EfficientNet": (
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
        _PIXELS,
    ),
    "FocalNet": ({}, _PIXELS),
    "Levit": ({}, _PIXELS),
    "MobileNetV2": ({}, _PIXELS),
    "MobileViT": ({}, _PIXELS),
    "PoolFormer": ({}, _PIXELS),
    "Pvt": ({}, _PIXELS),
    "RegNet": ({}, _PIXELS),
    "ResNet": ({}, _PIXELS),
    "Segformer": ({}, _PIXELS),
    "SwiftFormer": ({}, _PIXELS),
    "Swin": ({}, _PIXELS),
    "Swinv2": ({}, _PIXELS),
    "VideoMAE": ({**_FOUR, "num_frames": 4}, {"pixel_values": (1, 4, 3, 224, 224)}),
    "ViT": (_FOUR, _PIXELS),
    "ViTMAE": (_FOUR, _PIXELS),
    "Yolos": ({**_FOUR, "image_size": [224, 224]}, _PIXELS),
    # Sound, series, and both of text and images.
    "AST": (_FOUR, {"input_values": (1, 1024, 128)}),
    "CLIP": ({"text_config": _FOUR, "vision_config": _FOUR}, {**_TOKENS, **_PIXELS}),
    "PatchTST": ({"num_input_channels": 7}, {"past_values": (1, 32, 7)}),
    "Wav2Vec2": (_FOUR, _WAVE),
    "Whisper": (
        {"encoder_layers": 2, "decoder_layers": 2},
        {"input_features": (1, 80, 3000), "decoder_input_ids": (1, 16)},
    ),
}


def _transformers() -> Iterator[Network]:
    for name, (settings, inputs) in TRANSFORMERS.items():
        make = partial(_transformer, name, settings)
        yield Network(f"transformers/{name}", make, partial(_named, inputs))


def _transformer(name: str, settings: Mapping[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}Model")(config)


def _named(shapes: Mapping[str, tuple[int, ...]]) -> Inputs:
    """Return numbers of words for what is called ids, and zeros for the rest."""

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        if not name.endswith("ids"):
            return torch.zeros(shape)
        return torch.arange(2, 2 + shape[1]).expand(shape).contiguous()

    return {name: tensor(name, shape) for name, shape in shapes.items()}


# This repository -----------------------------------------------------------------------------


def _tests() -> Iterator[Network]:
    folder = str(Path(__file__).parents[1] / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    from constrained_cnn import models

    for file in ("independent_networks", "unusual_networks"):
        for case in importlib.import_module(file).CASES:
            yield Network(f"{file}/{case.name}", case.make, _images(case.input_shape))
    for name in models.list_models():
        yield Network(f"models/{name}", partial(models.create_model, name), _images((1, 28, 28)))


_LIBRARIES: Mapping[str, Callable[[], Iterator[Network]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "tests": _tests,
}
