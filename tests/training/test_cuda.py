"""Training on a GPU. Skipped without one."""

from dataclasses import replace

import pytest
import torch
from helpers.models import HEADS, small_tiny_config, small_yolact_config
from helpers.training_runs import QUICK, Rectangles, small_start

from solo_infer import SOLO, load_model
from solo_infer.training import fit, init_model
from solo_infer.training.metrics_log import read_rows

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("without_tf32"),
]

STARTS = {
    **{head: lambda head=head: small_start(head) for head in HEADS},
    "yolact": lambda: init_model(small_yolact_config("mmdet"), seed=1),
    "tiny": lambda: init_model(small_tiny_config(), seed=1),
}
RECIPE = replace(QUICK, optimizer="adamw", lr=1e-3, grad_clip_norm=5.0)


def interrupt(model):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", STARTS)
def test_losses_and_gradients_equal_the_cpu(name, tmp_path):
    rows = {}
    for device in ("cpu", "cuda"):
        fit(STARTS[name](), Rectangles(1), tmp_path / device, replace(RECIPE, epochs=1), device=device)
        (rows[device],) = read_rows(tmp_path / device / "training.csv")
    columns = [column for column in rows["cpu"] if column.startswith("loss") or column == "grad_norm"]
    assert len(columns) > 2
    for column in columns:
        assert float(rows["cuda"][column]) == pytest.approx(float(rows["cpu"][column]), rel=2e-3, abs=1e-4), (
            column
        )


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("autocast", ["float32", "bfloat16", "float16"])
def test_run_learns_and_is_resumed(name, autocast, tmp_path):
    recipe = replace(RECIPE, autocast=autocast, epochs=4, evaluate_every=2)
    with pytest.raises(KeyboardInterrupt):
        fit(STARTS[name](), Rectangles(6), tmp_path, recipe, device="cuda", evaluate=interrupt)
    fit(STARTS[name](), Rectangles(6), tmp_path, recipe, device="cuda", resume=True)
    losses = [float(row["loss"]) for row in read_rows(tmp_path / "training.csv")]
    assert len(losses) == 24 and sum(losses[-6:]) < sum(losses[:6])
    model = load_model(tmp_path, device="cuda")
    assert len(model(torch.zeros(3, 90, 120, dtype=torch.uint8))) >= 0


def test_embedded_model_finds_the_same_on_both_devices(photo):
    on_cpu, on_cuda = (SOLO.from_pretrained("tiny", device=device)(photo) for device in ("cpu", "cuda"))
    confident = int((on_cpu.scores > 0.3).sum())
    assert confident > 0
    torch.testing.assert_close(on_cuda.cpu().scores[:confident], on_cpu.scores[:confident], rtol=0, atol=1e-3)
    assert (on_cuda.cpu().masks[:confident] != on_cpu.masks[:confident]).float().mean() < 1e-3
