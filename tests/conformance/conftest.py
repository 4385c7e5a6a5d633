MARKS = (
    "accelerate_tests",
    "all_flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_mps_test",
    "flash_attn_test",
    "is_pipeline_test",
    "is_training_test",
    "torch_compile_test",
    "torch_export_test",
)


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own test suite")
