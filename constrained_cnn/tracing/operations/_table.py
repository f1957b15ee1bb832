"""The operation table: all that is known of each operation of torch, in one record.

Operations are known by the name torch gives them, in-place and reflected forms under the plain
name: ``add_``, ``__radd__`` and ``torch.add`` are all ``add``. :func:`register_op` adds to it.
"""

from typing import Any

from constrained_cnn.tracing.operations import _aten, _axes, _kinds, _mixing, _windows, _work
from constrained_cnn.tracing.operations._call import elementwise, nothing
from constrained_cnn.tracing.operations._operation import KindRule, Operation, ReadRule, WorkRule

BUILT_IN: dict[str, Operation] = {}


def _enter(
    names: str,
    kind: str | KindRule,
    reads: ReadRule,
    work: WorkRule,
    arguments: str = "",
    **rest: Any,
) -> None:
    """Enter an operation under several names; ``{}`` stands for 1, 2 and 3 axes of an image."""
    operation = Operation(kind, reads, work, tuple(arguments.split()), **rest)
    for name in names.split():
        every = [name.format(axes) for axes in (1, 2, 3)] if "{}" in name else [name]
        BUILT_IN.update(dict.fromkeys(every, operation))


def _each(names: str, kind: str | KindRule, gradient: str = "", arguments: str = "") -> None:
    """Enter what computes each unit from the same unit of its inputs."""
    _enter(names, kind, elementwise, _work.each, arguments, gradient=gradient)


def _moves(
    names: str, kind: str | KindRule, reads: ReadRule, arguments: str = "", **rest: Any
) -> None:
    """Enter what computes nothing."""
    _enter(names, kind, reads, _work.none, arguments, **rest)


# fmt: off
# Unit by unit: activations, other functions that are not linear, and what is linear.
_each("relu", "relu", "passes")
_each("sigmoid", "activation")
_each("prelu", "activation", "passes", "input weight")
_each(
    "celu elu gelu hardsigmoid hardswish hardshrink log_sigmoid logsigmoid mish relu6 selu silu "
    "softplus softshrink softsign tanh tanhshrink",
    "activation", "passes",
)
_each("clamp clip", _kinds.clamp, "passes", "input min max")
_each("clamp_min", _kinds.clamp, "passes", "input min")
_each("clamp_max", _kinds.clamp, "passes", "input max")
_each("hardtanh", _kinds.hardtanh, "passes")
_each("leaky_relu", _kinds.leaky_relu, "passes")
_each("threshold _threshold", _kinds.threshold, "passes", "input threshold value")
_enter("rrelu", "activation", elementwise, _work.each, draws=True, gradient="passes")
_enter("glu", "activation", _mixing.glu, _work.each)
_enter("log_sigmoid_forward", "activation", _mixing.itself, _work.each, gradient="passes")
_each(
    "acos acosh addcdiv addcmul angle arccos arcsin arctan asin asinh atan atan2 atanh copysign "
    "cos cosh digamma erfc exp exp2 expm1 float_power floor_divide floordiv fmod frac frexp gcd "
    "hypot i0 igamma igammac isclose isfinite isinf isnan lcm ldexp lerp lgamma log log10 log1p "
    "log2 logaddexp logaddexp2 mod nan_to_num nextafter polar polygamma quantize_per_tensor "
    "reciprocal remainder rsqrt sgn signbit sin sinc sinh special_entr special_erfcx special_i0 "
    "special_i0e special_i1 special_i1e special_log_ndtr special_ndtri special_xlog1py "
    "special_zeta sqrt square tan xlogy",
    "nonlinear",
)
_each(
    "abs absolute ceil erf fake_quantize_per_tensor_affine fix floor logit round sign trunc "
    "truncate",
    "nonlinear", "passes",
)
_each(
    "and bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor eq "
    "fmax fmin ge greater gt heaviside invert le less logical_and logical_not logical_or "
    "logical_xor lshift lt masked_fill maximum minimum ne or rshift where xor",
    "nonlinear", "chooses",
)
_enter(
    "bucketize fake_quantize_per_channel_affine",
    "nonlinear", _axes.stretched, _work.each, gradient="passes",
)
_enter(
    "fused_moving_avg_obs_fake_quant _fused_moving_avg_obs_fq_helper",
    "nonlinear", _mixing.observed, _work.each, gradient="passes",
)
_each("pow", _kinds.power, arguments="input exponent")
_each("add rsub sub subtract", "add")
_each("deg2rad dequantize fill_diagonal mul multiply neg negative rad2deg tril triu", "scale")
_each("div divide true_divide truediv", _kinds.quotient, arguments="input other")

# The same values: copies, casts, and dropout, which computes nothing in evaluation mode.
_moves(
    "alias as_tensor asarray clone complex conj conj_physical contiguous cpu data imag lift_fresh "
    "lift_fresh_copy positive real requires_grad resolve_conj resolve_neg",
    "moves", elementwise,
)
_moves("detach", "moves", elementwise, gradient="passes")
_moves("_to_copy bool int long type", _kinds.cast, elementwise)
_moves("bfloat16 double float half", "moves", elementwise, gradient="casts")
_moves("to type_as", _kinds.cast, _axes.stretched, partial=True)
_moves("copy", "moves", _axes.copied, partial=True)
for _name, _drops in (
    ("dropout", "elementwise"),
    ("dropout{}d feature_dropout", "channel"),
    ("alpha_dropout", "alpha"),
    ("feature_alpha_dropout", "channel alpha"),
):
    _moves(_name, "dropout", elementwise, "input p training", drops=_drops, draws=True)

# New tensors, and random numbers.
_moves(
    "arange empty empty_like empty_strided eye from_numpy full full_like new_empty "
    "new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices "
    "triu_indices zero zeros zeros_like",
    "source", nothing, partial=True,
)
_moves(
    "cauchy exponential geometric log_normal rand rand_like randint randint_like randn randn_like "
    "random randperm uniform",
    "random", nothing, partial=True, draws=True,
)
_enter(
    "bernoulli binomial multinomial normal poisson", "random", elementwise, _work.each,
    draws=True,
)
_moves("tensor new_tensor", _kinds.new, _axes.made_of, partial=True, gradient="passes")
_moves("fill", "source", _axes.filled, partial=True)
_moves("linspace", "add", nothing)  # what a rule leaves out is read whole
_enter("logspace", "nonlinear", nothing, _work.each)

# Whole axes: sums, products, norms, attention.
_enter("mean", "mean", _mixing.reduction, _work.reduction, "input dim keepdim")
_enter("sum", "sum", _mixing.reduction, _work.reduction, "input dim keepdim")
_enter("nanmean", "mean", _mixing.reduction, _work.reduction)
_enter("nansum", "sum", _mixing.reduction, _work.reduction)
_enter(
    "all any argmax argmin count_nonzero linalg_vector_norm logsumexp norm prod std std_mean var "
    "var_mean",
    "nonlinear", _mixing.reduction, _work.reduction,
)
_enter("aminmax", "nonlinear", _mixing.reduction, _work.reduction, gradient="selects")
_enter(
    "amax amin max min",
    "nonlinear", _mixing.reduction, _work.reduction, "input dim keepdim", gradient="largest",
)
_enter("softmax log_softmax softmin", "softmax", _mixing.along, _work.each)
_enter("normalize", "nonlinear", _mixing.along, _work.each)
for _name in ("batch_norm", "group_norm", "instance_norm"):
    _enter(_name, _name, _mixing.position_norm, _work.norm)
for _name in ("layer_norm", "rms_norm"):
    _enter(_name, _name, _mixing.layer_norm, _work.norm)
_enter("local_response_norm", "local_response_norm", _mixing.across_channels, _work.norm)
_enter(  # as torch.export calls it
    "_native_batch_norm_legit_no_training", "batch_norm", _mixing.itself, _work.stored_norm
)
_enter("linear", "linear", _mixing.linear, _work.linear, "input weight bias")
_enter("matmul mm bmm", _kinds.product, _mixing.matmul, _work.matmul)
_enter("mv dot vdot", _kinds.product, _mixing.matmul, _work.vectors)
_enter("addmm", "linear", _mixing.matmul, _work.added_matmul)
_enter("baddbmm addbmm addmv", _kinds.product, _mixing.matmul, _work.added_matmul)
_enter("addr", "product", nothing, _work.each)
_enter("einsum", _kinds.einsum, _mixing.product, _work.product)
_enter("bilinear", "product", _mixing.rows, _work.bilinear)
_enter("_cdist_forward _euclidean_dist", "nonlinear", _mixing.distances, _work.distances)
_enter(
    "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy huber_loss kl_div "
    "mse_loss multi_margin_loss multilabel_margin_loss nll_loss smooth_l1_loss soft_margin_loss",
    "nonlinear", _mixing.alike, _work.reduction_of_input,
)
_enter("dist isin searchsorted _pdist_forward", "nonlinear", nothing, _work.each)
_enter(
    "multi_head_attention_forward",
    "attention", _mixing.multi_head_attention, _work.multi_head_attention, drops="attention",
)
_enter(
    "scaled_dot_product_attention",
    "attention", _mixing.attention, _work.attention, "query key value attn_mask dropout_p",
    drops="attention",
)
_enter(
    "lstm gru rnn_tanh rnn_relu",
    "recurrent", _mixing.recurrent, _work.recurrent,
    "input hx weights bias num_layers dropout training", drops="recurrent",
)
_enter("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", "recurrent", _mixing.rows, _work.recurrent)
_moves("embedding", "embedding", _mixing.embedding)
_enter("embedding_bag", "embedding", _mixing.bag, _work.bag)
_moves("one_hot", "nonlinear", _mixing.embedding)
_enter("cumsum", "sum", _mixing.cumulated, _work.each)
_enter("cumprod logcumsumexp", "nonlinear", _mixing.cumulated, _work.each)
_enter("cummax cummin", "nonlinear", _mixing.cumulated, _work.each, gradient="selects")
_enter("diff", "add", _mixing.differences, _work.each)
_enter("argsort msort", "nonlinear", _mixing.ordered, _work.reduction_of_input)
_enter(
    "kthvalue median mode nanmedian sort topk",
    "nonlinear", _mixing.ordered, _work.reduction_of_input, gradient="selects",
)

# Windows.
_enter(
    "conv{}d",
    "conv", _windows.convolution, _work.convolution,
    "input weight bias stride padding dilation groups", windows=_windows.windows_of_convolution,
)
_enter(
    "conv_transpose{}d",
    "transposed_conv", _windows.transposed_convolution, _work.transposed_convolution,
    "input weight bias stride padding output_padding groups dilation",
    windows=_windows.windows_of_transposed,
)
_POOL = "input kernel_size stride padding"
for _name, _kind, _arguments, _gradient in (
    ("max_pool", "max_pool", f"{_POOL} dilation ceil_mode return_indices", "largest"),
    ("avg_pool", "avg_pool", f"{_POOL} ceil_mode count_include_pad divisor_override", ""),
    ("lp_pool", _kinds.power_mean, "", ""),
):
    _names = f"{_name}{{}}d {_name}{{}}d_with_indices"
    _enter(
        _names, _kind, _windows.pool, _work.pool, _arguments,
        windows=_windows.windows_of_pool, gradient=_gradient,
    )
for _kind, _gradient in (("max_pool", "largest"), ("avg_pool", "")):
    _names = f"adaptive_{_kind}{{}}d adaptive_{_kind}{{}}d_with_indices"
    _enter(
        _names, _kind, _windows.adaptive_pool, _work.adaptive_pool,
        "input output_size return_indices", gradient=_gradient,
    )
_enter(
    "fractional_max_pool2d fractional_max_pool2d_with_indices fractional_max_pool3d "
    "fractional_max_pool3d_with_indices",
    "max_pool", _windows.in_channels, _work.reduction_of_input, draws=True,
)
_moves("max_unpool{}d", "nonlinear", _windows.in_channels)
_enter(
    "grid_sample grid_sampler grid_sampler_2d grid_sampler_3d",
    _kinds.sampled, _windows.sampled, _work.sampled,
)
_enter("affine_grid_generator", "linear", _windows.affine_grid, _work.affine_grid)
_enter("torchvision::roi_align torchvision::roi_pool", "nonlinear", _windows.regions, _work.regions)
_enter(
    "torchvision::ps_roi_align torchvision::ps_roi_pool",
    "nonlinear", _axes.somewhere, _work.regions,
)
_enter("torchvision::deform_conv2d", "nonlinear", _windows.deformed, _work.deformed)
_enter(
    "upsample interpolate",
    _kinds.resampling, _windows.interpolate, _work.interpolate, gradient="rounds",
)
_moves("pixel_shuffle", "shuffle", _windows.pixel_shuffle, "input upscale_factor")
_moves("pixel_unshuffle", "shuffle", _windows.pixel_unshuffle, "input downscale_factor")
_moves("channel_shuffle", "shuffle", _mixing.shuffled_channels, "input groups")

# Axes in another order, cut, joined, repeated, padded.
_moves(
    "permute transpose swapaxes swapdims movedim moveaxis T mT H mH t adjoint",
    "reshapes", _axes.permutation,
)
_moves("view _unsafe_view reshape unflatten", "reshapes", _axes.reshape)
_moves("flatten", "reshapes", _axes.reshape, "input start_dim end_dim")
_moves("view_as reshape_as", "reshapes", _axes.reshape, partial=True)
_moves("view_as_real", "reshapes", _mixing.embedding)
_moves("squeeze unsqueeze", "reshapes", _axes.squeeze)
_moves("expand broadcast_to", "repeat", _axes.stretched)
_moves("expand_as", "repeat", _axes.stretched, partial=True)
_moves("repeat tile", "repeat", _axes.repeated)
_moves("repeat_interleave", "repeat", _axes.interleaved)
_moves("broadcast_tensors", "repeat", _axes.stretched_each)
_moves("chunk split unsafe_chunk unsafe_split", "cut", _axes.parts, "input sizes dim")
_moves("split_with_sizes unsafe_split_with_sizes tensor_split unbind", "cut", _axes.parts)
_moves("index_select", _kinds.indexed("cut"), _axes.selected)
_moves("getitem", _kinds.indexed("cut"), _axes.indexing)
_moves("gather", _kinds.indexed("cut"), _axes.gathered)
_moves("take", _kinds.indexed("cut"), _axes.somewhere)
_moves("as_strided", "cut", _axes.somewhere)
_moves("diagonal diagonal_copy", "cut", _axes.diagonal)
_moves("diag_embed", "pad", _axes.on_diagonal)
_enter("trace", "sum", nothing, _work.reduction_of_input)
_moves("unfold", "unfold", _axes.unfolded)
_moves("im2col", "unfold", _axes.patches)
_enter("col2im", "sum", _axes.folded, _work.reduction_of_input)
_moves("cat concat concatenate stack", "join", _mixing.concatenation, "tensors dim")
_moves("setitem", _kinds.indexed("join"), _axes.written, partial=True)
_moves("diagonal_scatter block_diag", "join", nothing)
_moves("scatter index_copy index_fill", _kinds.indexed("join"), _axes.put)
_enter("scatter_add index_add", _kinds.indexed("add"), _axes.put, _work.each)
_enter("scatter_reduce index_reduce", "nonlinear", _axes.put, _work.each)
_moves("flip", "shift", _axes.flip)
_moves("roll", "shift", _axes.rolled)
_moves("rot90", "shift", _axes.turned)
_moves("pad constant_pad_nd reflection_pad{}d replication_pad{}d", "pad", _axes.padding)

# What ATen and torch.export call otherwise: the call of an operation above that does the same.
for _name, _rewrite in _aten.REWRITES.items():
    _moves(_name, "unknown", nothing, stands_for=_rewrite)
