"""Small awkward shapes: what `zfkernels verify` always runs (FIXED_*), and the calls of the public functions that the
tests make besides (tests/calls.py).

Fills (cases.values): "normal" values; "ties", small integers, which are exact in every dtype and often equal;
"nonfinite", normal values with some NaN and infinities; "zeros".
"""

FIXED_CONVS = (  # n, c_in, c_out, (h, w), kernel, stride, padding
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    (2, 3, 24, (17, 15), (7, 7), (2, 2), (1, 1)),  # conv1's form
    (1, 7, 5, (13, 11), (3, 3), (1, 1), (1, 1)),  # prime sizes
    (2, 5, 3, (4, 6), (4, 6), (1, 1), (0, 0)),  # a kernel as large as the map
    (1, 4, 6, (9, 10), (2, 1), (3, 4), (0, 0)),  # strides that skip pixels
    (1, 2, 4, (3, 3), (3, 3), (1, 1), (2, 2)),  # windows almost wholly in the padding
    (2, 4, 8, (11, 12), (3, 3), (3, 3), (0, 1)),  # pixels at the edge that no window covers
    (1, 8, 16, (1, 37), (1, 5), (1, 2), (0, 2)),  # one row
    (1, 33, 17, (6, 7), (3, 3), (1, 1), (1, 1)),  # channels just past a vector's width
    (2, 32, 40, (13, 13), (3, 3), (1, 1), (1, 1)),  # conv3's map
    (0, 3, 4, (8, 8), (3, 3), (1, 1), (1, 1)),  # no images
)
FIXED_POOLS = (  # n, c, (h, w), kernel, stride, padding, ceil
    (1, 1, (1, 1), (1, 1), (1, 1), (0, 0), False),
    (2, 6, (12, 14), (3, 3), (2, 2), (0, 0), True),  # overlapping, overhanging: pool1's form
    (1, 16, (13, 13), (3, 3), (2, 2), (0, 0), False),
    (1, 5, (7, 5), (2, 3), (1, 2), (1, 1), True),
    (2, 3, (9, 11), (2, 2), (3, 3), (0, 0), False),  # gaps between windows
    (1, 33, (17, 16), (16, 16), (1, 1), (8, 8), False),  # 256 taps, the most a switch can name
    (1, 2, (5, 5), (5, 5), (5, 5), (0, 0), False),  # one window
    (0, 4, (6, 6), (3, 3), (2, 2), (0, 0), False),
)
FIXED_NORMS = (  # n, c, (h, w), size, alpha, beta, k, center
    (1, 1, (1, 1), 5, 1e-4, 0.75, 2.0, False),
    (2, 96, (5, 7), 5, 1e-4, 0.75, 2.0, False),
    (1, 7, (3, 3), 4, 0.5, 0.75, 1.0, False),  # an even size
    (2, 6, (4, 5), 4, 0.5, 0.75, 1.0, True),
    (1, 3, (6, 2), 9, 2.0, 0.5, 1.0, True),  # windows wider than the stack
    (1, 17, (2, 2), 1, 1.0, 1.0, 0.5, False),
    (1, 33, (3, 5), 2, 0.1, 1.3, 1.5, True),
    (0, 8, (4, 4), 5, 1e-4, 0.75, 2.0, True),
)

# name, x (N, C, H, W), filters, kernel, stride, padding, bias, fill
CONVOLUTIONS = [
    ("primes", (2, 3, 11, 7), 5, (3, 3), 1, 1, True, "normal"),
    ("one_channel", (1, 1, 5, 5), 1, (3, 3), 1, 0, False, "normal"),
    ("one_pixel", (3, 2, 1, 1), 4, (1, 1), 1, 0, True, "normal"),
    ("no_images", (0, 3, 5, 5), 2, (3, 3), 2, 1, True, "normal"),
    ("pointwise", (2, 17, 5, 3), 19, (1, 1), 1, 0, False, "normal"),
    ("stride_beyond_kernel", (1, 3, 11, 13), 4, (2, 2), (3, 4), 0, True, "normal"),
    ("rectangular", (2, 5, 9, 13), 7, (5, 2), (2, 3), (2, 0), True, "normal"),
    ("padding_beyond_kernel", (1, 2, 4, 3), 3, (2, 2), 1, (3, 4), True, "normal"),
    ("kernel_is_map", (2, 4, 6, 5), 8, (6, 5), 1, 0, True, "normal"),
    ("kernel_beyond_map", (1, 3, 2, 3), 2, (5, 4), (2, 1), (2, 1), False, "normal"),
    ("first_layer", (1, 3, 23, 22), 33, (7, 7), 2, 1, True, "normal"),
    ("second_layer", (2, 24, 11, 11), 37, (5, 5), 2, 0, True, "normal"),
    ("deep", (1, 37, 6, 7), 65, (3, 3), 1, 1, True, "normal"),
    ("leftover", (1, 2, 10, 12), 3, (3, 3), (4, 5), 0, True, "normal"),
    ("ties", (2, 3, 7, 8), 6, (3, 2), (1, 2), 1, True, "ties"),
    ("zeros", (1, 2, 5, 5), 3, (3, 3), 1, 1, False, "zeros"),
    ("special", (2, 3, 9, 8), 5, (3, 3), 2, 1, True, "nonfinite"),
]

# name, x (N, C, H, W), kernel, stride, padding, ceil_mode, fill
POOLINGS = [
    ("overlap", (2, 5, 11, 13), 3, 2, 0, False, "normal"),
    ("ceil_overhang", (2, 16, 12, 10), 3, 2, 0, True, "normal"),
    ("ceil_leftover", (1, 3, 5, 8), 2, 3, 0, True, "normal"),
    ("ceil_padding", (1, 4, 7, 6), (4, 3), (3, 2), (2, 1), True, "normal"),
    ("ceil_last_window_dropped", (1, 2, 3, 4), 2, 2, 1, True, "normal"),
    ("kernel_beyond_map_ceil", (2, 2, 1, 2), 3, 3, 0, True, "normal"),
    ("one_channel", (3, 1, 7, 5), 2, None, 0, False, "normal"),
    ("one_pixel", (2, 3, 1, 1), 1, 1, 0, False, "normal"),
    ("no_images", (0, 3, 5, 5), 3, 2, 1, True, "normal"),
    ("stride_one", (1, 3, 6, 5), 3, 1, 1, False, "normal"),
    ("stride_beyond_kernel", (1, 2, 11, 13), (2, 3), (4, 5), 0, False, "normal"),
    ("rectangular", (2, 7, 9, 13), (1, 5), (2, 3), (0, 2), False, "normal"),
    ("largest_window", (1, 2, 17, 19), 16, 1, 8, False, "normal"),
    ("deep", (1, 67, 6, 5), 3, 2, 1, False, "normal"),
    ("ties", (2, 6, 9, 7), 3, 2, 1, True, "ties"),
    ("zeros", (1, 2, 5, 5), 3, 2, 0, False, "zeros"),
    ("special", (2, 9, 9, 8), 3, 2, 1, True, "nonfinite"),
]

# name, x (N, C, H, W), size, alpha, beta, k, center, fill
NORMS = [
    ("paper", (2, 16, 5, 7), 5, 1e-4, 0.75, 2.0, False, "normal"),
    ("strong", (2, 33, 3, 5), 5, 1.5, 0.75, 1.0, False, "normal"),
    ("even", (1, 11, 3, 2), 4, 0.5, 0.75, 2.0, False, "normal"),
    ("even_centered", (1, 11, 3, 2), 4, 0.5, 0.75, 2.0, True, "normal"),
    ("two", (1, 7, 2, 2), 2, 0.5, 0.5, 1.0, True, "normal"),
    ("size_one", (1, 3, 4, 5), 1, 1.0, 0.75, 1.0, False, "normal"),
    ("size_one_centered", (1, 3, 4, 5), 1, 1.0, 0.75, 1.0, True, "normal"),
    ("size_beyond_channels", (2, 3, 5, 3), 9, 0.3, 0.75, 2.0, False, "normal"),
    ("size_beyond_channels_even", (2, 3, 5, 3), 8, 0.3, 0.75, 2.0, True, "normal"),
    ("one_channel", (3, 1, 3, 5), 5, 1.0, 0.75, 1.0, False, "normal"),
    ("one_pixel", (1, 13, 1, 1), 5, 1.0, 0.6, 1.5, True, "normal"),
    ("no_images", (0, 5, 3, 3), 5, 1.0, 0.75, 1.0, False, "normal"),
    ("beta_above_one", (1, 19, 2, 3), 3, 0.7, 1.25, 1.0, True, "normal"),
    ("beta_negative", (1, 9, 2, 3), 3, 0.7, -0.5, 1.0, False, "normal"),
    ("alpha_zero", (1, 9, 2, 3), 3, 0.0, 0.75, 3.0, True, "normal"),
    ("ties", (2, 17, 3, 3), 5, 1.0, 0.75, 1.0, True, "ties"),
    ("zeros", (1, 8, 3, 3), 5, 1.0, 0.75, 2.0, True, "zeros"),
    ("special", (2, 21, 3, 4), 5, 1.0, 0.75, 2.0, False, "nonfinite"),
    ("special_centered", (2, 21, 3, 4), 4, 1.0, 0.75, 2.0, True, "nonfinite"),
]

# name, x (N, C, H, W), (pool kernel, stride, padding, ceil_mode), (size, alpha, beta, k, center), fill
POOLED_NORMS = [
    ("paper", (2, 16, 11, 12), (3, 2, 0, True), (5, 0.5, 0.75, 2.0, False), "normal"),
    ("many_pixels_a_block", (1, 8, 7, 29), (3, 2, 1, True), (5, 1.0, 0.75, 1.0, False), "normal"),
    ("wide", (1, 2064, 3, 4), (2, 1, 0, False), (5, 1.0, 0.75, 1.0, False), "normal"),
    ("rectangular", (2, 24, 9, 13), ((1, 5), (2, 3), (0, 2), False), (5, 0.5, 1.25, 1.0, False), "normal"),
    ("odd_channels", (2, 7, 5, 6), (3, 2, 0, True), (5, 1.0, 0.75, 1.0, False), "normal"),
    ("even_centered", (1, 16, 5, 5), (2, 2, 0, False), (4, 1.0, 0.75, 1.0, True), "normal"),
    ("no_images", (0, 8, 5, 5), (3, 2, 0, True), (5, 1.0, 0.75, 1.0, False), "normal"),
    ("ties", (2, 16, 7, 7), (3, 2, 0, True), (5, 1.0, 0.75, 1.0, False), "ties"),
    ("special", (2, 24, 7, 8), (3, 2, 1, True), (5, 1.0, 0.75, 2.0, False), "nonfinite"),
]

# name, x (N, C, H, W), filters, kernel, stride, padding, bias, pool kernel, stride, padding, ceil_mode, fill
LAYERS = [
    ("first_layer", (1, 3, 25, 22), 33, (7, 7), 2, 1, True, 3, 2, 0, True, "normal"),
    ("second_layer", (2, 24, 11, 13), 37, (5, 5), 2, 0, True, 3, 2, 0, True, "normal"),
    ("primes", (2, 3, 11, 7), 5, (3, 3), 1, 1, True, 2, 2, 0, False, "normal"),
    ("one_channel", (1, 1, 7, 5), 1, (3, 3), 1, 1, False, 3, 2, 1, True, "normal"),
    ("one_pixel", (3, 2, 1, 1), 4, (1, 1), 1, 0, True, 1, 1, 0, False, "normal"),
    ("no_images", (0, 3, 9, 9), 2, (3, 3), 2, 1, True, 3, 2, 0, True, "normal"),
    ("rectangular", (2, 5, 11, 13), 7, (5, 2), (2, 3), (2, 0), True, (2, 3), (1, 2), (1, 0), False, "normal"),
    ("pool_without_overlap", (1, 3, 8, 9), 17, (3, 3), 1, 1, False, 2, None, 0, False, "normal"),
    ("pool_stride_beyond_kernel", (1, 3, 13, 15), 4, (2, 2), 1, 0, True, 2, (3, 4), 0, True, "normal"),
    ("ties", (2, 3, 9, 8), 6, (3, 3), 1, 1, True, 3, 2, 0, True, "ties"),
    ("zeros", (1, 2, 7, 7), 3, (3, 3), 1, 1, False, 3, 2, 0, True, "zeros"),
    ("special", (2, 3, 12, 11), 5, (3, 3), 1, 1, True, 3, 2, 1, True, "nonfinite"),
]
