"""``solo-infer convert``."""

import torch
from helpers.command_line import assert_clear, files_below

from solo_infer import SOLO

pytest_plugins = ["helpers.command_line_fixtures"]


def test_convert(run, saved, loaded, tmp_path):
    from safetensors import safe_open

    code, out, err = run("convert", saved, "--output", tmp_path / "new", "--dtype", "float16")
    assert (code, out, err) == (0, f"{tmp_path / 'new'}\n", "")
    assert files_below(tmp_path / "new") == ["config.json", "model.safetensors"]
    name = "mask_head.conv_cls.weight"
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as tensors:
        assert tensors.get_tensor(name).dtype == torch.float16
    converted = SOLO.from_pretrained(tmp_path / "new", device="cpu")
    assert (converted.config, converted.dtype) == (loaded.config, torch.float32)
    expected = loaded.network.state_dict()[name].half().float()
    assert torch.equal(converted.network.state_dict()[name], expected)


def test_output_that_cannot_be_written(run, saved, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, out, err = run("convert", saved, "--output", tmp_path / "file" / "new")
    assert (code, out) == (1, "")
    assert_clear(err, "CacheError", "cannot be written")
