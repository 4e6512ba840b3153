"""Resources and instructions that ptxas reports for the CUDA kernels on the architectures they ship for."""

import pytest
from gpu_kernels import ARCHITECTURES, HAS_NVCC, SHARED_OF_A_BLOCK, WITHOUT_NVCC, assert_fits, of

# Blocks that share a multiprocessor. The similarity's two tiles of 128 x 128 sums take 128 registers of each of 256
# threads, which leaves room for one block.
RESIDENT = {
    "blur_direct<128": 2,
    "blur_direct<256": 1,
    "blur_products<": 1,  # 16 warps of 128 registers fill a multiprocessor
    "blur_split": 1,  # two on sm_80 and sm_90, for which it is
    "blur_parameter_gradient": 1,
    "parameter_products": 1,  # as blur_products
    "blur_general": 2,
    "parameter_gradient_general": 1,
    "blend_levels": 2,
    "similarity_scores": 1,
    "merge_slices": 8,
}
DEFAULT_SHARED = 48 * 1024  # bytes of shared memory that a launch gets by default

pytestmark = pytest.mark.skipif(not HAS_NVCC, reason=WITHOUT_NVCC)


def test_kernels_do_not_spill_and_share_a_multiprocessor(gpu_resources):
    rows = of(gpu_resources, "cuda")
    assert len(rows) == len(ARCHITECTURES) * (4 + 5 + 2 + 1 + 3 + 3 + 1 + 16 + 1)
    for row in rows:
        (blocks,) = (blocks for name, blocks in RESIDENT.items() if row["kernel"].startswith(name))
        assert_fits(row, blocks)


def test_shared_memory_is_what_a_launch_asks_for(gpu_resources):
    """The similarity holds four stages of two tiles of 128 rows of 64 bytes, and half a tile of scores.

    Besides, the gates of two tiles, a threshold for each recording, and which lanes have scores above it.
    """
    similarity = 4 * 2 * 128 * 64 + 64 * 128 * 4 + 2 * 2 * 128 * 4 + 128 * 4 + 2 * 8 * 4 * 4
    for row in of(gpu_resources, "cuda", "similarity_scores"):
        assert (row["static_shared"], row["dynamic_shared"]) == (0, similarity), row
    for row in of(gpu_resources, "cuda", "blur_products<") + of(gpu_resources, "cuda", "parameter_products"):
        assert row["static_shared"] == 0 < DEFAULT_SHARED < row["dynamic_shared"] <= SHARED_OF_A_BLOCK[86], row
    for row in of(gpu_resources, "cuda", "blur_direct<256") + of(gpu_resources, "cuda", "blur_parameter_gradient"):
        assert DEFAULT_SHARED < row["static_shared"] + row["dynamic_shared"] <= SHARED_OF_A_BLOCK[86], row


def test_the_direct_form_copies_asynchronously_and_reads_wide(gpu_resources):
    for row in of(gpu_resources, "cuda", "blur_direct"):
        used = row["instructions"]
        assert used["LDGSTS.32"] > 0 and used["LDS.128"] > 0 and used["LDS.64"] > 0 and used["STS.128"] > 0, row
        assert used["LDG.64"] > 0 and used["STG.64"] > 0, row


def test_calls_launch_the_form_that_is_exact_enough(gpu_resources):
    launched = {row["kernel"]: set(row["calls"]) for row in of(gpu_resources, "cuda")}
    direct, products = launched["blur_direct<256, Images>"], launched["blur_products<unsigned char, Images>"]
    kinds = ("float16", "bfloat16", "float32")
    assert direct == {"blur, uint8 to float32", *(f"blur, float32 to {kind}" for kind in kinds)}
    assert {"blur, uint8 to uint8", "blur, uint8 to float16", "blur, uint8 to float32, tf32"} <= products
    assert launched["blur_split<Images>"] == {f"blur, float32 to {kind}, 9.0" for kind in kinds}
    assert launched["blur_split<BlurGradients>"] == {"gradient of images, float32 to float32, 9.0"}
    assert "gradient of sigma and gain, float16 to float32" in launched["parameter_products<Half>"]
    assert "gradient of sigma and gain, uint8 to float32" in launched["blur_parameter_gradient"]
    assert launched["blur_general<false>"] == {"blur, options", "blur of a list"}
    assert launched["blur_general<true>"] == {"gradient of images, options"}
    assert launched["parameter_gradient_general"] == {"gradient of sigma and gain, options"}
    assert launched["similarity_scores<ExactProducts, true, Matrix>"] == {"similarity, float32"}
    assert launched["similarity_scores<ExactProducts, false, Matrix>"] == {"similarity, float32, strided"}
    assert launched["similarity_scores<MatrixProducts<float>, true, SliceBest>"] == {"top-k, float32, tf32"}


def test_split_products_are_three_for_each_tile_of_taps(gpu_resources):
    for row in of(gpu_resources, "cuda", "blur_split"):
        # For D = 1 and 2: 2 D + 1 tiles of two halves along the rows, and along the columns away from the border and
        # near it, there with as many mirrored ones.
        assert row["instructions"]["HMMA"] == 3 * 2 * (3 + 5) * (1 + 1 + 2), row
        assert row["architecture"] == 86 or row["blocks"] == 2, row


def test_the_blur_uses_tensor_cores_and_wide_loads(gpu_resources):
    rows = of(gpu_resources, "cuda", "blur_products<")
    assert len(rows) == len(ARCHITECTURES) * 5  # three types of images, two of gradients
    for row in rows:
        used = row["instructions"]
        # Both passes filter two tiles in a step, each with 2 D + 1 tiles of taps in two products of 16 x 8; near the
        # border with three as many. D is 2 or 4.
        assert used["HMMA"] == 2 * 2 * (5 + 9) * 2 * (1 + 3), row
        assert used["LDGSTS.128"] > 0 and used["LDSM"] > 0 and used["LDS.128"] > 0 and used["STG.64"] > 0, row


def test_gradients_of_sigma_and_gain_share_operands(gpu_resources):
    rows = of(gpu_resources, "cuda", "parameter_products")
    assert len(rows) == len(ARCHITECTURES) * 3
    for row in rows:
        # Taps and slopes filter columns in four products of 16 x 8 for each of 2 D + 1 tiles, and rows in six; near the
        # border a loop has three times as many for one tile. D is 2 or 4.
        assert row["instructions"]["HMMA"] == (4 + 6) * (5 + 9) + 2 * 3 * (4 + 6), row
        assert row["instructions"]["LDGSTS.128"] > 0 and row["instructions"]["LDSM"] > 0, row


def test_the_similarity_uses_tensor_cores_and_wide_copies(gpu_resources):
    rows = of(gpu_resources, "cuda", "similarity_scores")
    assert len(rows) == len(ARCHITECTURES) * 2 * 2 * 4  # of whole or other rows, stored and ranked
    for row in rows:
        used = row["instructions"]
        assert ("LDGSTS.128" in used) == ("true" in row["kernel"]), row
        if "Exact" in row["kernel"]:
            # four steps of depth for 64 sums
            assert "HMMA" not in used and used["FFMA"] >= 4 * 64 and used["LDS.128"] > 0, row
        else:
            assert used["HMMA"] == 4 * 4 * 2 and used["LDSM"] > 0, row  # 4 x 4 tiles of sums, twice in a step
        assert "Matrix>" not in row["kernel"] or used["STG.128"] > 0, row
