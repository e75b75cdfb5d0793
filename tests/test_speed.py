"""The speed benchmark measures what it says: equal networks, fair clocks, shares taken within a round."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import speed
import tables
import torch
from contenders import CONTENDERS, PEAK, PLAIN, Settings
from contenders.inference import ours, port
from contenders.parent import Child
from contenders.picture import draw_scaling, draw_speed
from contenders.rounds import Over, Rounds
from contenders.summary import flop, spread, summarise, table, work_of

import mlpconv

SPEED = Path(__file__).resolve().parents[1] / "benchmarks" / "speed.py"
TINY = Settings(batch=3, batches=(3, 1), side=16, threads=1, seconds=0.01)


@pytest.mark.parametrize("side", [32, 24, 47])
def test_the_work_of_an_image_is_that_of_the_profile(side: int) -> None:
    model = mlpconv.create_model("nin_cifar10", size=(side, side))
    assert flop("inference", side) == 2 * mlpconv.analysis.profile(model, (3, side, side)).totals.macs


def test_the_work_at_the_published_size_is_what_the_documents_say() -> None:
    assert flop("inference") == pytest.approx(0.445e9, rel=1e-3)
    assert flop("training") == pytest.approx(1.305e9, rel=1e-3)


def test_the_ports_network_computes_what_ours_does() -> None:
    plain = port()
    images = torch.randn(2, 3, 37, 37, generator=torch.Generator().manual_seed(1))
    assert sum(parameter.numel() for parameter in plain.parameters()) == 966_986
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), ours()(images), rtol=1e-4, atol=1e-5)


def test_the_graph_for_other_engines_computes_what_torch_does() -> None:
    onnx = pytest.importorskip("onnx")
    from contenders.engines import graph
    from onnx.reference import ReferenceEvaluator

    plain, images = port(), np.random.default_rng(2).normal(size=(2, 3, 13, 13)).astype(np.float32)
    evaluator = ReferenceEvaluator(onnx.load_from_string(graph(plain, 2, 13)))
    with torch.inference_mode():
        expected = plain(torch.from_numpy(images)).numpy()
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(evaluator.run(None, {"images": images})[0], expected, rtol=1e-3, atol=1e-4)


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def timed(monkeypatch: pytest.MonkeyPatch, words: int, seconds: float) -> tuple[Clock, Rounds, io.StringIO]:
    """A clock that stands still, rounds that are asked for so many times, and what they answer."""
    clock, answers = Clock(), io.StringIO()
    monkeypatch.setattr("contenders.rounds.time.perf_counter", clock)
    return clock, Rounds(io.StringIO('{"batch": 7}\n' * words), answers, seconds), answers


def test_a_round_leaves_out_the_warm_up_and_what_comes_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rounds, answers = timed(monkeypatch, words=1, seconds=5.0)
    with pytest.raises(Over):
        for lap in (50.0, 40.0, 30.0, 2.0, 4.0):  # two to get ready, one to warm up, two that count
            with rounds.input():
                clock.now += lap / 4
            clock.now += lap * 3 / 4
            rounds.lap(11)
            if lap == 2.0:
                clock.now += 9.0
                rounds.aside()
    ready, report = (json.loads(line) for line in answers.getvalue().splitlines())
    assert ready == {"ready": True}
    assert rounds.asked == {"batch": 7}
    expected = {"images": 22, "seconds": 6.0, "lap": 3.0, "input_share": 0.25, "epoch_end": 9.0}
    assert {key: report[key] for key in expected} == expected


def test_a_contender_rests_before_each_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rounds, _ = timed(monkeypatch, words=1, seconds=1.0)
    rests: list[int] = []
    rounds.rest = lambda: rests.append(rounds.laps_done)
    with pytest.raises(Over):
        for _ in range(100):
            clock.now += 0.5
            rounds.lap(1)
    assert rests == [2, 5]  # ready after two laps; then one to warm up and two that count


def test_a_short_lap_warms_up_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rounds, answers = timed(monkeypatch, words=1, seconds=0.125)
    with pytest.raises(Over):
        for _ in range(100):
            clock.now += 1 / 64
            rounds.lap(1)
    assert rounds.laps_done == 2 + 13 + 8  # 0.2 s are 12.8 laps, 0.125 s are 8
    assert json.loads(answers.getvalue().splitlines()[1])["images"] == 8


def answer(speed: float, fp32: float, bf16: float, **more: Any) -> dict[str, Any]:
    """What a contender of so many images a second shows between peaks (GFLOP/s) that are 10 % lower and higher."""
    peaks = [{"fp32": fp32 * 1e9 * way, "bf16": bf16 * 1e9 * way} for way in (0.9, 1.1)]
    given = {"images": 1000, "seconds": 1000 / speed, "epoch_end": 0.0, "input_share": 0.02, "faults": 3000}
    return given | {"peaks": peaks, "peak_bytes": 5, "threads": 2} | more


def test_shares_and_ratios_are_taken_within_a_round() -> None:
    rounds = [
        {"plain": answer(50, 200, 100), "ours-bf16": answer(150, 200, 400)},
        {"plain": answer(25, 100, 50), "ours-bf16": answer(75, 100, 200)},  # a slow moment: all speeds halve
    ]
    found = summarise(rounds, "training", Settings())["contenders"]
    work = flop("training")
    assert found["ours-bf16"]["images_per_second"]["samples"] == [150, 75]
    assert found["ours-bf16"]["share_of_peak"]["samples"] == pytest.approx([150 * work / 400e9] * 2)
    assert found["plain"]["share_of_peak"]["samples"] == pytest.approx([50 * work / 200e9] * 2)
    assert found["ours-bf16"]["times_plain"]["samples"] == [3, 3]
    assert found["ours-bf16"]["faults_per_image"] == 3


def test_the_end_of_an_epoch_is_charged_by_its_share() -> None:
    rounds = [{"ours-fp32": answer(100, 200, 100, epoch_end=50.0)}]
    (speed,) = summarise(rounds, "training", Settings())["contenders"]["ours-fp32"]["images_per_second"]["samples"]
    assert speed == pytest.approx(50_000 / (50_000 / 100 + 50))


def test_who_cannot_run_is_named_and_stops_nobody() -> None:
    rounds = [{"plain": answer(50, 200, 100), "openvino-bf16": {"unavailable": "no openvino", "peaks": [{}, {}]}}]
    rounds[0]["openvino-bf16"]["peaks"] = rounds[0]["plain"]["peaks"]
    found = summarise(rounds, "training", Settings())
    assert found["contenders"]["openvino-bf16"]["unavailable"] == "no openvino"
    shown = table(found).splitlines()
    assert "50.0 images/s" in shown[1] and "no openvino" in shown[2]


def test_the_spread_is_median_and_quartiles() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3, "q1": 2, "q3": 4, "samples": [4, 1, 2, 3, 5]}
    assert spread([7.0]) == {"median": 7, "q1": 7, "q3": 7, "samples": [7]}


def test_every_kind_of_work_has_the_port_it_is_compared_with() -> None:
    for work, name in PLAIN.items():
        assert CONTENDERS[name].work == work
        assert not CONTENDERS[name].options.get("memory")
    assert {contender.work for contender in CONTENDERS.values()} == {*PLAIN, CONTENDERS[PEAK].work}


def two_rounds() -> dict[str, Any]:
    """A result with all kinds of work, an engine that is missing, and nothing of its own to say of speed."""
    missing = {"unavailable": "openvino is not installed", "peaks": answer(1, 200, 100)["peaks"]}
    training = [{"plain": answer(50, 200, 100), "ours-bf16": answer(150 + n, 200, 400)} for n in (0, 2)]
    inference = [
        {"eager": answer(200, 200, 400), "predict": answer(800, 200, 400, difference=0.004), "openvino-bf16": missing}
    ]
    result: dict[str, Any] = {"cpu": "Some CPU", "rounds": 2, "batch": 128}
    result["training"] = summarise(training, "training", Settings())
    return result | {work: summarise(inference, "inference", Settings()) for work in ("inference", "single")}


def content(result: dict[str, Any]) -> dict[str, Any]:
    machine = {"cores": 2, "packages": {"torch": "2.13.0"}}
    return {"command": "python benchmarks/speed.py", "date": "2026-01-01", "machine": machine, "result": result}


def test_the_page_says_what_the_result_says() -> None:
    page = tables.section(content(two_rounds()), "images/speed-some-cpu.png")
    assert "### Some CPU, 2 cores" in page and "torch 2.13.0; median (quartiles) of 2 rounds" in page
    assert (
        "| mlpconv, paper's network, bf16 | **151** (150–152) | **49** (49–49) % | 3.02× | 3 | 0.0 GB | 2.0% |" in page
    )
    assert "| **800** (800–800), 1.25 ms |" in page
    assert "| OpenVINO, bf16 | not run: openvino is not installed |" in page
    front = tables.summary(content(two_rounds()), "docs/images/speed-some-cpu.png")
    assert "| training | **151 images/s** | 49% | 3.0× |" in front
    assert "1.25 ms per image" in front and "](docs/images/speed-some-cpu.png)" in front


def test_the_page_has_a_table_for_each_network() -> None:
    works = {"side": 227} | {name: two_rounds()[name] for name in ("inference", "single")}
    page = tables.networks_section(content({"cpu": "Some CPU", "rounds": 2, "networks": {"squeezenet": works}}))
    assert "### Some CPU, 2 cores: the ImageNet networks" in page
    assert "**`squeezenet`, 227x227 pixels: inference**" in page
    assert page.count("| mlpconv, Classifier.predict on pixels | **800** (800–800)") == 2


def test_the_work_of_another_network_is_that_of_its_profile() -> None:
    model, point = mlpconv.load("squeezenet").model, replace(TINY, network="squeezenet", side=67)
    assert work_of("inference", point) == 2 * mlpconv.analysis.profile(model, (3, 67, 67)).totals.macs
    assert work_of("inference", Settings()) == flop("inference")


def test_a_document_takes_its_tables_between_its_markers() -> None:
    document = "before\n" + tables.BLOCK.format(name="speed", text="old\n") + "\nafter"
    assert tables.replaced(document, "speed", "new | \\1\n") == document.replace("old", "new | \\1")
    with pytest.raises(SystemExit, match="0 marked blocks 'speed'"):
        tables.replaced("no marker", "speed", "new")


def test_the_documents_match_the_published_results() -> None:
    assert {path.name: path.read_text("utf-8") for path in tables.pages()} == {
        path.name: text for path, text in tables.pages().items()
    }


def test_a_result_of_this_machine_stays_out_of_the_documents(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("common.RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "measure_all", lambda *_, **__: two_rounds())
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py"])
    speed.main()
    assert "local" in capsys.readouterr().out and tables.load("speed") == {}
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", "--publish"])
    speed.main()
    assert len(tables.load("speed")) == 1


def test_the_pictures_show_every_contender_that_ran() -> None:
    result = two_rounds()
    panels = draw_speed(result).axes
    assert [panel.get_title(loc="left") for panel in panels] == [
        "Training, batches of 128", "Inference, batches of 128", "Inference, one image at a time"
    ]  # fmt: skip
    bars = [[label.get_text() for label in panel.get_yticklabels()] for panel in panels]
    assert bars[0] == ["mlpconv, paper's network, bf16", "plain port"]  # the fastest first
    assert bars[1] == bars[2] == ["mlpconv, Classifier.predict on pixels", "torch as ports run it"]
    assert panels[0].patches[0].get_width() == pytest.approx(49.3, abs=0.1)
    point = {"training": result["training"], "inference": result["inference"]}
    scaled = {
        axis: dict.fromkeys(values, point) for axis, values in (("batch", "18"), ("side", "24"), ("threads", "1"))
    }
    speeds = draw_scaling(scaled).axes[0]
    shown = {*(f"training: {label}" for label in bars[0]), *(f"inference: {label}" for label in bars[1])}
    assert {line.get_label() for line in speeds.lines} == shown
    assert list(speeds.lines[0].get_xdata()) == [1, 8]
    table_of = tables.scaling_section(content(scaled | {"cpu": "Some CPU"}), "x.png")
    assert "| batch 8 | 50 (0.0) | 151 (0.0) | 200 (0.0) | 800 (0.0) | not run |" in table_of


@pytest.mark.parametrize("name", ["plain", "ours-norm-bf16", "engine-bf16", "predict", PEAK])
def test_a_contender_waits_for_its_turn_and_answers(name: str) -> None:
    child = Child(name, TINY)
    try:
        child.prepare()
        first, second = child.round(batch=3), child.round(batch=3)
    finally:
        child.end()
    assert child.unavailable is None
    assert first["seconds"] > 0 and second["seconds"] > 0
    assert first["threads"] == 1
    assert first["images"] % (1 if name == PEAK else 3) == 0
    if name == "plain":
        assert 0 < first["input_share"] < 1
    if name == "ours-norm-bf16":
        assert first["epoch_end"] > 0 and 0 < first["input_share"] < 1
        assert any("bf16" in note for note in first["notes"])
    if name in ("engine-bf16", "predict"):
        assert first["difference"] < 0.05
    if name == "engine-bf16":
        assert first["difference"] > 1e-5  # of fewer digits than plain torch's
    if name == PEAK:
        assert min(first["fp32"], first["bf16"]) > 1e8


def test_a_contender_that_fails_says_why_and_is_not_asked_again() -> None:
    child = Child("eager", Settings(side=2, batches=(1,), seconds=0.01))  # too small for the second pool
    try:
        child.prepare()
        assert child.unavailable
        assert child.round() == {"unavailable": child.unavailable}
    finally:
        child.end()


def test_a_name_there_is_not_is_refused_with_those_there_are() -> None:
    ended = subprocess.run([sys.executable, SPEED, "--only", "warp"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "unknown contender 'warp'" in ended.stderr and "ours-bf16" in ended.stderr


@pytest.mark.slow
def test_other_networks_run_in_every_engine() -> None:
    point = replace(TINY, network="squeezenet", side=67)
    for name in ("eager", "onnxruntime", "openvino-fp32", "model-bf16", "predict"):
        child = Child(name, point)
        try:
            child.prepare()
            assert child.round(batch=3).get("difference", 1.0) < 0.05, (name, child.unavailable)
        finally:
            child.end()


@pytest.mark.slow
def test_the_whole_command_runs() -> None:
    names = "plain,ours-fp32,eager,onnxruntime,openvino-fp32,predict"
    command = [sys.executable, SPEED, "--only", names, "--rounds", "1", "--seconds", "0.05", "--batch", "2"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("images/s") >= 4
    assert "training, batch size 2" in ended.stdout and "inference, batch size 1" in ended.stdout
