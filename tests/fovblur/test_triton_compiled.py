"""Resources of the Triton kernels, compiled for the GPUs they ship for, in every tile that is launched there."""

from gpu_kernels import assert_fits, of


def test_every_type_is_compiled_for_both_architectures(gpu_resources):
    rows = of(gpu_resources, "triton")
    keys = {tuple(row[name] for name in ("kernel", "configuration", "architecture")) for row in rows}
    assert len(keys) == len(rows)
    blurs = [row for row in rows if "topk" not in row["kernel"] and "similarity" not in row["kernel"]]
    # common calls; with options: results, adjoints, lists, gradients and blends
    assert len(blurs) == 2 * (4 + 3 + 4) + 2 * 2 * 5
    # float16, bfloat16 and tf32, then float32: few and many recordings and kept; on sm_90 descriptors and pointers
    assert len(rows) - len(blurs) == (3 * 4 + 3) + (3 * (5 + 6) + 3)


def test_blur_kernels_do_not_spill_and_two_blocks_share_a_multiprocessor(gpu_resources):
    """The taps of float32, in two parts, take most of the shared memory of sm_86."""
    for name in ("blur", "parameter_gradient", "general_blur", "list_blur", "general_gradient", "blend"):
        for row in of(gpu_resources, "triton", name):
            assert_fits(row, blocks=1 if "three float16 products" in row["kernel"] else 2)
            assert {"HMMA", "HGMMA"} & row["instructions"].keys(), row
            of_a_list = name == "list_blur"  # whose images begin anywhere
            assert of_a_list or row["instructions"]["LDG.128"] > 0, row


def test_similarity_kernels_do_not_spill_and_use_the_matrix_units_and_wide_copies(gpu_resources):
    """float32 that must stay exact has no such units; on sm_90 whole warp groups multiply."""
    for name in ("similarity", "topk"):
        for row in of(gpu_resources, "triton", name):
            assert_fits(row, blocks=1)
            unit = "FFMA" if row["kernel"].endswith("fp32") else "HGMMA" if row["architecture"] == 90 else "HMMA"
            assert row["instructions"].get(unit, 0) > 0, row
            assert row["instructions"].keys() & {"LDGSTS.128", "UTMALDG"}, row
