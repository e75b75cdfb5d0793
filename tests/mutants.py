"""Mutation testing of the package's guards: each guard is removed in turn, and its test must then fail.

    python tests/mutants.py            all mutants, in a copy of src; several minutes (`make test-slow` runs them)
    python tests/mutants.py NUMBER...  only these

A mutant that survives is a guard that no test covers: improve the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from support.guards import GUARDS, Mutant
from support.server_guards import SERVER_GUARDS

TOP = Path(__file__).resolve().parents[1]
SRC = TOP / "src" / "mlpconv"
LONGEST = 600  # seconds for one test
PASSED, FAILED = 0, 1  # exit codes of pytest; any other means that it could not run


MUTANTS = (
    # A checkpoint is whole or absent
    Mutant(
        "training/checkpoint.py",
        "        fsync_folder(staging)\n",
        "",
        "training/test_checkpoint.py::test_files_are_synced_before_the_rename_and_the_folder_after",
    ),
    Mutant(
        "training/checkpoint.py",
        '    if hashlib.sha256(content).hexdigest() != entry["sha256"]:',
        "    if False:",
        "training/test_checkpoint.py::test_every_flipped_bit_is_detected",
    ),
    Mutant(
        "training/checkpoint.py",
        "not FILE_NAME.fullmatch(name) or ",
        "",
        "training/test_checkpoint.py::test_an_inconsistent_manifest_is_refused",
    ),
    Mutant(
        "training/checkpoint.py",
        " if path.name < newest.name]",
        " if path != newest]",
        "training/test_checkpoint.py::test_damaged_newer_checkpoints_do_not_displace_intact_ones",
    ),
    Mutant(
        "training/checkpoint.py",
        "shutil.rmtree(leftover, ignore_errors=True)",
        "pass",
        "training/test_checkpoint.py::test_a_save_that_dies_leaves_the_old_or_the_new_checkpoint",
    ),
    Mutant(
        "training/checkpoint.py",
        "    if not stat.S_ISREG(status.st_mode):",
        "    if False:",
        "training/test_checkpoint.py::test_pipes_links_and_folders_instead_of_files_do_not_block",
    ),
    Mutant(
        "files.py",
        "        write_synced(staged, content)\n        os.replace(staged, path)\n",
        "        path.write_bytes(content)\n",
        "training/test_checkpoint.py::test_a_file_is_replaced_atomically",
    ),
    # A resumed run has the same bits
    Mutant(
        "training/state.py",
        '            self.optimizers.load_tensors(tensors["optimizer"])\n',
        "",
        "training/test_resume.py::test_stopping_after_every_step_is_bit_identical",
    ),
    Mutant(
        "training/state.py",
        '                self.ema.load_state_dict(tensors["averaged"])',
        "                pass",
        "training/test_resume.py::test_stopping_after_every_step_is_bit_identical",
    ),
    Mutant(
        "training/step.py",
        '    seed_torch(generator(recipe.seed, "dropout", step).initial_seed(), batch.images.device)\n',
        "",
        "training/test_resume.py::test_stopping_after_every_step_is_bit_identical",
    ),
    Mutant(
        "training/loop.py",
        "        if state.history:\n            self.record(state.history)\n",
        "",
        "training/test_resume.py::test_dying_at_any_file_call_is_bit_identical",
    ),
    Mutant(
        "training/loop.py",
        " and state.totals.any():\n            self.end_epoch()\n",
        " and state.totals.any():\n            pass\n",
        "training/test_resume.py::test_stopping_after_any_step_or_before_validation_is_bit_identical",
    ),
    Mutant(
        "training/run_folder.py",
        "fieldnames=COLUMNS,",
        "fieldnames=list(rows[0]),",
        "training/test_resume.py::test_stopping_after_every_step_is_bit_identical",
    ),
    Mutant(
        "data/augment.py",
        "(random_bits(index, seed) + epoch) % 2",
        "random_bits(index, seed) % 2",
        "data/test_augment.py::test_alternate_flips_flip_every_image_every_second_epoch",
    ),
    Mutant(
        "data/sampler.py",
        ", torch.set_flush_denormal, (True,))",
        ")",
        "data/test_sampler.py::test_a_worker_flushes_denormals_as_the_trainer_does",
    ),
    Mutant(
        "training/precision.py",
        "        return Timing(*times) if valid else None",
        "        return None",
        "training/test_resume.py::test_an_unstable_timer_changes_no_bit",
    ),
    Mutant(
        "training/session.py",
        '    return precision if precision in ("fp32", "bf16") else None',
        "    return None",
        "test_fitting.py::test_the_recorded_dtype_is_used_before_the_first_checkpoint",
    ),
    # A run leaves no trace in the caller's program
    Mutant(
        "training/seeding.py",
        "        torch.set_rng_state(cpu_state)\n",
        "        pass\n",
        "test_fitting.py::test_the_random_states_of_the_caller_do_not_change",
    ),
    # A run stops with a sentence, and keeps what is good
    Mutant(
        "training/state.py",
        "bool(torch.isfinite(value).all())",
        "True",
        "training/test_faults.py::test_a_non_finite_weight_stops_the_run_before_it_is_saved",
    ),
    Mutant(
        "training/run_folder.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "training/test_faults.py::test_a_second_trainer_is_refused_with_the_id_of_the_first",
    ),
    Mutant(
        "training/frozen_outputs.py",
        "self.train[view, index]",
        "self.train[0 * view, index]",
        "training/test_frozen_outputs.py::test_a_batch_has_the_outputs_for_the_images_that_it_would_have",
    ),
    Mutant(
        "training/frozen_outputs.py",
        " and not any(isinstance(layer, nn.Dropout) for layer in layers)",
        "",
        "training/test_frozen_outputs.py::test_a_stage_with_dropout_or_a_trained_weight_is_not_frozen",
    ),
    Mutant(
        "training/health.py",
        "        return is_constant(model, images, logits)",
        "        return False",
        "training/test_health.py::test_a_dead_network_is_detected_within_the_patience",
    ),
    Mutant(
        "training/session.py",
        "    if fingerprint != dataset.fingerprint:",
        "    if False:",
        "test_fitting.py::test_other_images_are_refused_on_resume",
    ),
    # The networks are the paper's
    Mutant(
        "layers.py",
        "nn.MaxPool2d(3, 2, ceil_mode=True)",
        "nn.MaxPool2d(3, 2)",
        "test_layers.py::test_pools_have_no_padding_and_round_their_size_up",
    ),
    Mutant(
        "preprocessing/steps.py",
        "torch.where(divisor < self.floor, 1.0, divisor)",
        "divisor",
        "test_preprocessing.py::test_constant_images_become_zeros",
    ),
    Mutant(
        "preprocessing/steps.py",
        " + self.bias).rsqrt()",
        ").rsqrt()",
        "test_preprocessing.py::test_rank_deficient_channels_stay_finite",
    ),
    # Files of others are hostile
    Mutant(
        "modelfile/store.py",
        "    if digest != expected:",
        "    if False:",
        "attacks/test_model_file.py::test_every_flipped_bit_is_found",
    ),
    Mutant(
        "modelfile/tensorfile.py",
        "        if entry.start != position:",
        "        if False:",
        "attacks/test_model_file.py::test_hostile_files_are_refused_at_once",
    ),
    Mutant(
        "data/decode.py",
        "    image = plugin(file)\n    _check_pixels(image.width, image.height, name, _pixel_limit(image))\n",
        "    image = plugin(file)\n",
        "data/test_hostile_images.py::test_huge_images_are_refused_by_their_header",
    ),
    Mutant(
        "data/jpeg.py",
        "    if width * height > limit and _is_fully_buffered(image):\n",
        "    if False:\n",
        "data/test_decode.py::test_a_jpeg_with_separate_component_scans_is_fully_buffered",
    ),
    Mutant(
        "data/validation.py",
        "        return (below & ~_isin(keys, self.kept)) | _isin(keys, self.held)\n",
        "        return below | _isin(keys, self.held)\n",
        "data/test_validation.py::test_every_class_is_held_out_in_proportion",
    ),
    Mutant(
        "data/balance.py",
        "    __eq__, __hash__ = object.__eq__, object.__hash__  # tensors",
        "    # tensors",
        "data/test_balance.py::test_samplers_of_other_labels_do_not_share_what_is_remembered",
    ),
    Mutant(
        "training/network.py",
        "    if dataset.published:\n",
        "    if True:\n",
        "data/test_namesakes.py::test_folders_have_no_recipe_network_or_split_of_a_published_set",
    ),
    Mutant(
        "data/formats.py",
        " or stream.read(1):",
        ":",
        "data/test_hostile_sets.py::test_false_idx_files_are_refused",
    ),
    Mutant(
        "data/download.py",
        "    return digest.hexdigest() == (file.sha256 or file.md5)",
        "    return True",
        "data/test_download.py::test_a_wrong_checksum_leaves_nothing",
    ),
    Mutant(
        "data/folder.py",
        "len(errors) > max_bad * total or ",
        "",
        "data/test_folder.py::test_too_many_unreadable_files_are_refused",
    ),
    Mutant(
        "report/page.py",
        '    return html.escape("\\n".join(printable(line) for line in text.split("\\n")), quote=True)',
        "    return text",
        "report/test_report.py::test_names_from_outside_are_text",
    ),
    # Numbers are judged right
    Mutant(
        "evaluation.py",
        "(logits > true) | ((logits == true) & earlier)",
        "logits > true",
        "test_evaluation.py::test_ties_earn_nothing",
    ),
    Mutant(
        "inference/classifier.py",
        "            module.training = False\n",
        "            pass\n",
        "inference/test_classifier.py::test_it_computes_in_eval_mode_whatever_the_mode",
    ),
    Mutant(
        "temperature_scaling.py",
        "    uncertain = 1 / (count + 2)\n",
        "    uncertain = 0.0\n",
        "test_temperature_scaling.py::test_a_perfect_score_on_few_images_is_not_certain",
    ),
    *GUARDS,
    *SERVER_GUARDS,
)


def faults(mutant: Mutant) -> list[str]:
    """Return what is wrong with a mutant: its source text does not occur exactly once, or its test does not exist."""
    count = (SRC / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    path, _, name = mutant.test.partition("::")
    problems = [] if count == 1 else [f"{mutant.file} has {mutant.old!r} {count} times, expected once"]
    if f"def {name}(" not in (TOP / "tests" / path).read_text(encoding="utf-8"):
        problems.append(f"{mutant.test} does not exist")
    return problems


def run(test: str, src: Path) -> int:
    """Run one test on a copy of the package and return the exit code of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
    environment = os.environ | {"PYTHONPATH": str(src), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return FAILED  # a package that hangs without its guard counts as caught
    if result.returncode not in (PASSED, FAILED):
        print(result.stdout + result.stderr)
    return result.returncode


def survives(mutant: Mutant, src: Path) -> bool:
    """Remove the guard, run its test and restore the guard; return whether the test still passes."""
    path = src / "mlpconv" / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return run(mutant.test, src) != FAILED
    finally:
        path.write_text(source, encoding="utf-8")


def main() -> int:
    """Run the mutants named on the command line, or all; return the number that survived."""
    numbers = [int(word) for word in sys.argv[1:]] or range(len(MUTANTS))
    problems = [problem for number in numbers for problem in faults(MUTANTS[number])]
    if problems:
        print(*problems, sep="\n")
        return len(problems)
    survived = 0
    with tempfile.TemporaryDirectory() as work:
        src = Path(work) / "src"
        shutil.copytree(TOP / "src", src, ignore=shutil.ignore_patterns("__pycache__"))
        green = {test: run(test, src) == PASSED for test in sorted({MUTANTS[number].test for number in numbers})}
        for number in numbers:
            mutant = MUTANTS[number]
            caught = green[mutant.test] and not survives(mutant, src)
            survived += not caught
            word = "caught" if caught else "SURVIVED" if green[mutant.test] else "FAILS BEFORE THE CHANGE"
            print(f"{number:>3}  {word}  {mutant.file}: {mutant.test}", flush=True)
    print(f"{len(numbers) - survived} of {len(numbers)} mutants were caught.")
    return survived


if __name__ == "__main__":
    raise SystemExit(main())
