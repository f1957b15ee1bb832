"""The operation table: all that is known of each operation of torch, in one record.

Operations are known by the name torch gives them, in-place and reflected forms under the plain
name: ``add_``, ``__radd__`` and ``torch.add`` are all ``add``. :func:`register_op` adds to it.
"""

from collections.abc import Iterable

from constrained_cnn.tracing.operations import (
    _aten,
    _axes,
    _kinds,
    _mixing,
    _windows,
    _work,
)
from constrained_cnn.tracing.operations._call import elementwise, nothing
from constrained_cnn.tracing.operations._operation import Operation

_TABLE: dict[str, Operation] = {}


def _enter(names: str | Iterable[str], operation: Operation) -> None:
    """Enter one operation under several names."""
    _TABLE.update(dict.fromkeys(names.split() if isinstance(names, str) else names, operation))


def _each(kind: str, gradient: str = "", arguments: tuple[str, ...] = ()) -> Operation:
    """Return an operation that computes each unit from the same unit of its inputs."""
    return Operation(kind, elementwise, _work.each, arguments, gradient=gradient)


def _dimensional(pattern: str) -> list[str]:
    """Return a name for images of one, two and three axes."""
    return [pattern.format(n) for n in (1, 2, 3)]


# Unit by unit: activations, other functions that are not linear, and what is linear.
_enter("relu", _each("relu", "passes"))
_enter(
    """
    celu elu gelu hardsigmoid hardswish hardshrink log_sigmoid logsigmoid mish relu6 selu silu
    softplus softshrink softsign tanh tanhshrink
    """,
    _each("activation", "passes"),
)
_enter("sigmoid", _each("activation"))
_enter("prelu", _each("activation", "passes", ("input", "weight")))
_enter("rrelu", Operation("activation", elementwise, _work.each, draws=True, gradient="passes"))
_enter("glu", Operation("activation", _mixing.glu, _work.each))
for _name, _rule, _names in (
    ("clamp", _kinds.clamp, ("input", "min", "max")),
    ("clip", _kinds.clamp, ("input", "min", "max")),
    ("clamp_min", _kinds.clamp, ("input", "min")),
    ("clamp_max", _kinds.clamp, ("input", "max")),
    ("hardtanh", _kinds.hardtanh, ()),
    ("leaky_relu", _kinds.leaky_relu, ()),
    ("threshold", _kinds.threshold, ("input", "threshold", "value")),
    ("_threshold", _kinds.threshold, ("input", "threshold", "value")),
):
    _enter(_name, Operation(_rule, elementwise, _work.each, _names, gradient="passes"))
_enter(
    """
    acos acosh addcdiv addcmul angle arccos arcsin arctan asin asinh atan atan2 atanh copysign cos
    cosh digamma erfc exp exp2 expm1 float_power floor_divide floordiv fmod frac frexp gcd
    hypot i0 igamma igammac isclose isfinite isinf isnan lcm ldexp lerp lgamma log log10 log1p log2
    logaddexp logaddexp2 mod nan_to_num nextafter polar polygamma quantize_per_tensor reciprocal
    remainder rsqrt sgn signbit sin sinc sinh special_entr special_erfcx special_i0 special_i0e
    special_i1 special_i1e special_log_ndtr special_ndtri special_xlog1py special_zeta sqrt square
    tan xlogy
    """,
    _each("nonlinear"),
)
_enter(
    """
    abs absolute ceil erf fake_quantize_per_tensor_affine fix floor logit round sign trunc truncate
    """,
    _each("nonlinear", "passes"),
)
_enter(
    "bucketize fake_quantize_per_channel_affine",
    Operation("nonlinear", _axes.stretched, _work.each, gradient="passes"),
)
_enter(
    "fused_moving_avg_obs_fake_quant _fused_moving_avg_obs_fq_helper",
    Operation("nonlinear", _mixing.observed, _work.each, gradient="passes"),
)
_enter(
    "log_sigmoid_forward", Operation("activation", _mixing.itself, _work.each, gradient="passes")
)
_enter(
    """
    and bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor eq
    fmax fmin ge greater gt heaviside invert le less logical_and logical_not logical_or logical_xor
    lshift lt masked_fill maximum minimum ne or rshift where xor
    """,
    _each("nonlinear", "chooses"),
)
_enter("pow", Operation(_kinds.power, elementwise, _work.each, ("input", "exponent")))
_enter("add rsub sub subtract", _each("add"))
_enter(
    "deg2rad dequantize fill_diagonal mul multiply neg negative rad2deg tril triu", _each("scale")
)
_enter(
    "div divide true_divide truediv",
    Operation(_kinds.quotient, elementwise, _work.each, ("input", "other")),
)

# The same values: copies, casts, and dropout, which computes nothing in evaluation mode.
_move = Operation("moves", elementwise, _work.none)
_enter(
    """
    alias as_tensor asarray clone complex conj conj_physical contiguous cpu data imag lift_fresh
    lift_fresh_copy positive real requires_grad resolve_conj resolve_neg
    """,
    _move,
)
_enter("detach", Operation("moves", elementwise, _work.none, gradient="passes"))
_enter("_to_copy bool int long type", Operation(_kinds.cast, elementwise, _work.none))
_enter("bfloat16 double float half", Operation("moves", elementwise, _work.none, gradient="casts"))
_first = Operation(_kinds.cast, _axes.stretched, _work.none, partial=True)
_enter("to type_as", _first)
_DROPS = {
    "dropout": "elementwise",
    "dropout1d": "channel",
    "dropout2d": "channel",
    "dropout3d": "channel",
    "feature_dropout": "channel",
    "alpha_dropout": "alpha",
    "feature_alpha_dropout": "channel alpha",
}
for _name, _what in _DROPS.items():
    _arguments = ("input", "p", "training")
    _enter(
        _name, Operation("dropout", elementwise, _work.none, _arguments, drops=_what, draws=True)
    )

# New tensors, and random numbers.
_source = Operation("source", nothing, _work.none, partial=True)
_enter(
    """
    arange empty empty_like empty_strided eye from_numpy full full_like new_empty new_empty_strided
    new_full new_ones new_tensor new_zeros ones ones_like scalar_tensor tensor tril_indices
    triu_indices zero zeros zeros_like
    """,
    _source,
)
_random = Operation("random", nothing, _work.none, partial=True, draws=True)
_enter(
    """
    cauchy exponential geometric log_normal rand rand_like randint randint_like randn
    randn_like random randperm uniform
    """,
    _random,
)
_enter(
    "bernoulli binomial multinomial normal poisson",
    Operation("random", elementwise, _work.each, draws=True),
)
_enter("fill", Operation("source", _axes.filled, _work.none, partial=True))
_enter("linspace", Operation("add", nothing, _work.none))  # what a rule leaves out is read whole
_enter("logspace", Operation("nonlinear", nothing, _work.each))

# Whole axes: sums, products, norms, attention.
_REDUCED = ("input", "dim", "keepdim")
_enter("mean", Operation("mean", _mixing.reduction, _work.reduction, _REDUCED))
_enter("nanmean", Operation("mean", _mixing.reduction, _work.reduction))
_enter("sum", Operation("sum", _mixing.reduction, _work.reduction, _REDUCED))
_enter("nansum", Operation("sum", _mixing.reduction, _work.reduction))
_enter(
    """
    all aminmax any argmax argmin count_nonzero linalg_vector_norm logsumexp norm prod std std_mean
    var var_mean
    """,
    Operation("nonlinear", _mixing.reduction, _work.reduction),
)
_enter("aminmax", Operation("nonlinear", _mixing.reduction, _work.reduction, gradient="selects"))
_enter(
    "amax amin max min",
    Operation("nonlinear", _mixing.reduction, _work.reduction, _REDUCED, gradient="largest"),
)
_enter("softmax log_softmax softmin", Operation("softmax", _mixing.along, _work.each))
_enter("normalize", Operation("nonlinear", _mixing.along, _work.each))
_enter("batch_norm", Operation("batch_norm", _mixing.position_norm, _work.norm))
_enter("group_norm", Operation("group_norm", _mixing.position_norm, _work.norm))
_enter("instance_norm", Operation("instance_norm", _mixing.position_norm, _work.norm))
_enter("layer_norm", Operation("layer_norm", _mixing.layer_norm, _work.norm))
_enter("rms_norm", Operation("rms_norm", _mixing.layer_norm, _work.norm))
_enter(
    "local_response_norm",
    Operation("local_response_norm", _mixing.across_channels, _work.norm),
)
_enter(
    "_native_batch_norm_legit_no_training",  # as torch.export calls it
    Operation("batch_norm", _mixing.itself, _work.stored_norm),
)
_enter(
    "linear",
    Operation("linear", _mixing.linear, _work.linear, ("input", "weight", "bias")),
)
_enter("matmul mm bmm", Operation("product", _mixing.matmul, _work.matmul))
_enter("mv dot vdot", Operation("product", _mixing.matmul, _work.vectors))
_enter("addmm", Operation("linear", _mixing.matmul, _work.added_matmul))
_enter("baddbmm addbmm addmv", Operation("product", _mixing.matmul, _work.added_matmul))
_enter("addr", Operation("product", nothing, _work.each))
_enter("einsum", Operation(_kinds.einsum, _mixing.product, _work.product))
_enter("bilinear", Operation("product", _mixing.rows, _work.bilinear))
_enter("_cdist_forward _euclidean_dist", Operation("nonlinear", _mixing.distances, _work.distances))
_enter(
    """
    binary_cross_entropy binary_cross_entropy_with_logits cross_entropy huber_loss kl_div
    mse_loss multi_margin_loss multilabel_margin_loss nll_loss smooth_l1_loss soft_margin_loss
    """,
    Operation("nonlinear", _mixing.alike, _work.reduction_of_input),
)
_enter("dist isin searchsorted _pdist_forward", Operation("nonlinear", nothing, _work.each))
_enter(
    "multi_head_attention_forward",
    Operation(
        "attention", _mixing.multi_head_attention, _work.multi_head_attention, drops="attention"
    ),
)
_enter(
    "scaled_dot_product_attention",
    Operation(
        "attention",
        _mixing.attention,
        _work.attention,
        ("query", "key", "value", "attn_mask", "dropout_p"),
        drops="attention",
    ),
)
_enter(
    "lstm gru rnn_tanh rnn_relu",
    Operation(
        "recurrent",
        _mixing.recurrent,
        _work.recurrent,
        ("input", "hx", "weights", "bias", "num_layers", "dropout", "training"),
        drops="recurrent",
    ),
)
_enter(
    "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    Operation("recurrent", _mixing.rows, _work.recurrent),
)
_enter("embedding", Operation("embedding", _mixing.embedding, _work.none))
_enter("embedding_bag", Operation("embedding", _mixing.bag, _work.bag))
_enter("one_hot", Operation("nonlinear", _mixing.embedding, _work.none))
_enter("cumsum", Operation("sum", _mixing.cumulated, _work.each))
_enter("cumprod logcumsumexp", Operation("nonlinear", _mixing.cumulated, _work.each))
_enter("cummax cummin", Operation("nonlinear", _mixing.cumulated, _work.each, gradient="selects"))
_enter("diff", Operation("add", _mixing.differences, _work.each))
_enter("argsort msort", Operation("nonlinear", _mixing.ordered, _work.reduction_of_input))
_enter(
    "kthvalue median mode nanmedian sort topk",
    Operation("nonlinear", _mixing.ordered, _work.reduction_of_input, gradient="selects"),
)

# Windows.
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONVOLUTION[:5], "output_padding", "groups", "dilation")
_POOL = ("input", "kernel_size", "stride", "padding")
_enter(
    _dimensional("conv{}d"),
    Operation(
        "conv",
        _windows.convolution,
        _work.convolution,
        _CONVOLUTION,
        _windows.windows_of_convolution,
    ),
)
_enter(
    _dimensional("conv_transpose{}d"),
    Operation(
        "transposed_conv",
        _windows.transposed_convolution,
        _work.transposed_convolution,
        _TRANSPOSED,
        _windows.windows_of_transposed,
    ),
)
for _kind, _given, _gradient in (
    ("max_pool", (*_POOL, "dilation", "ceil_mode", "return_indices"), "largest"),
    ("avg_pool", (*_POOL, "ceil_mode", "count_include_pad", "divisor_override"), ""),
    ("lp_pool", (), ""),
):
    for _end in ("", "_with_indices"):
        _enter(
            _dimensional(f"{_kind}{{}}d{_end}"),
            Operation(
                _kind, _windows.pool, _work.pool, _given, _windows.windows_of_pool,
                gradient=_gradient,
            ),
        )  # fmt: skip
for _kind in ("max_pool", "avg_pool"):
    for _end in ("", "_with_indices"):
        _enter(
            _dimensional(f"adaptive_{_kind}{{}}d{_end}"),
            Operation(
                _kind,
                _windows.adaptive_pool,
                _work.adaptive_pool,
                ("input", "output_size", "return_indices"),
                gradient="largest" if _kind == "max_pool" else "",
            ),
        )
_enter(
    [f"fractional_max_pool{n}d{end}" for n in (2, 3) for end in ("", "_with_indices")],
    Operation("max_pool", _windows.in_channels, _work.reduction_of_input, draws=True),
)
_enter(_dimensional("max_unpool{}d"), Operation("nonlinear", _windows.in_channels, _work.none))
_enter(
    "grid_sample grid_sampler grid_sampler_2d grid_sampler_3d",
    Operation(_kinds.sampled, _windows.sampled, _work.sampled),
)
_enter("affine_grid_generator", Operation("linear", _windows.affine_grid, _work.affine_grid))
_enter(
    "torchvision::roi_align torchvision::roi_pool",
    Operation("nonlinear", _windows.regions, _work.regions),
)
_enter(
    "torchvision::ps_roi_align torchvision::ps_roi_pool",
    Operation("nonlinear", _axes.somewhere, _work.regions),
)
_enter("torchvision::deform_conv2d", Operation("nonlinear", _windows.deformed, _work.deformed))
_enter(
    "upsample interpolate",
    Operation(_kinds.resampling, _windows.interpolate, _work.interpolate, gradient="rounds"),
)
_enter("pixel_shuffle", Operation("shuffle", _windows.pixel_shuffle, _work.none,
                                  ("input", "upscale_factor")))  # fmt: skip
_enter("pixel_unshuffle", Operation("shuffle", _windows.pixel_unshuffle, _work.none,
                                    ("input", "downscale_factor")))  # fmt: skip
_enter("channel_shuffle", Operation("shuffle", _mixing.shuffled_channels, _work.none,
                                    ("input", "groups")))  # fmt: skip

# Axes in another order, cut, joined, repeated, padded.
_enter(
    "permute transpose swapaxes swapdims movedim moveaxis T mT H mH t adjoint",
    Operation("reshapes", _axes.permutation, _work.none),
)
_enter("view _unsafe_view reshape unflatten", Operation("reshapes", _axes.reshape, _work.none))
_enter(
    "flatten",
    Operation("reshapes", _axes.reshape, _work.none, ("input", "start_dim", "end_dim")),
)
_enter("view_as reshape_as", Operation("reshapes", _axes.reshape, _work.none, partial=True))
_enter("squeeze unsqueeze", Operation("reshapes", _axes.squeeze, _work.none))
_enter("expand broadcast_to", Operation("repeat", _axes.stretched, _work.none))
_enter("expand_as", Operation("repeat", _axes.stretched, _work.none, partial=True))
_enter("repeat tile", Operation("repeat", _axes.repeated, _work.none))
_enter("repeat_interleave", Operation("repeat", _axes.interleaved, _work.none))
_enter("broadcast_tensors", Operation("repeat", _axes.stretched_each, _work.none))
_enter(
    "chunk split unsafe_chunk unsafe_split",
    Operation("cut", _axes.parts, _work.none, ("input", "sizes", "dim")),
)
_enter(
    "split_with_sizes unsafe_split_with_sizes tensor_split unbind",
    Operation("cut", _axes.parts, _work.none),
)
_enter("index_select", Operation(_kinds.indexed("cut"), _axes.selected, _work.none))
_enter("getitem", Operation(_kinds.indexed("cut"), _axes.indexing, _work.none))
_enter("gather", Operation(_kinds.indexed("cut"), _axes.gathered, _work.none))
_enter("take", Operation(_kinds.indexed("cut"), _axes.somewhere, _work.none))
_enter("as_strided", Operation("cut", _axes.somewhere, _work.none))
_enter("diagonal diagonal_copy", Operation("cut", _axes.diagonal, _work.none))
_enter("diag_embed", Operation("pad", _axes.on_diagonal, _work.none))
_enter("trace", Operation("sum", nothing, _work.reduction_of_input))
_enter("unfold", Operation("unfold", _axes.unfolded, _work.none))
_enter("im2col", Operation("unfold", _axes.patches, _work.none))
_enter("col2im", Operation("sum", _axes.folded, _work.reduction_of_input))
_enter(
    "cat concat concatenate stack",
    Operation("join", _mixing.concatenation, _work.none, ("tensors", "dim")),
)
_enter("setitem", Operation(_kinds.indexed("join"), _axes.written, _work.none, partial=True))
_enter("diagonal_scatter block_diag", Operation("join", nothing, _work.none))
_enter("scatter index_copy index_fill", Operation(_kinds.indexed("join"), _axes.put, _work.none))
_enter("scatter_add index_add", Operation(_kinds.indexed("add"), _axes.put, _work.each))
_enter("scatter_reduce index_reduce", Operation("nonlinear", _axes.put, _work.each))
_enter("copy", Operation("moves", _axes.copied, _work.none, partial=True))
_enter("flip", Operation("shift", _axes.flip, _work.none))
_enter("roll", Operation("shift", _axes.rolled, _work.none))
_enter("rot90", Operation("shift", _axes.turned, _work.none))
_enter("view_as_real", Operation("reshapes", _mixing.embedding, _work.none))
_enter(
    [
        "pad",
        "constant_pad_nd",
        *_dimensional("reflection_pad{}d"),
        *_dimensional("replication_pad{}d"),
    ],
    Operation("pad", _axes.padding, _work.none),
)

# What ATen and torch.export call otherwise: the call of an operation above that does the same.
for _name, _rewrite in _aten.REWRITES.items():
    _enter(_name, Operation("unknown", nothing, _work.none, stands_for=_rewrite))

BUILT_IN = dict(_TABLE)
