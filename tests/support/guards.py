"""Guards of the rooms that compute, show and look inside: more of the list in mutants.py."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GUARDS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """In `file`, `old` (which occurs once) becomes `new`; then `test` must fail."""

    file: str
    old: str
    new: str
    test: str


GUARDS = (
    # What a layer sees
    Mutant(
        "receptive_field/field.py",
        "_folded(numbers) if moved else (1, 1)",
        "_folded(numbers)",
        "receptive_field/test_field.py::test_repeated_elements_have_no_grid",
    ),
    Mutant(
        "receptive_field/field.py",
        "size=size if len(sized) == len(grids) else None",
        "size=size",
        "analysis/test_field.py::test_a_global_layer_sees_everything_and_a_gate_keeps_the_grid",
    ),
    Mutant(
        "receptive_field/rules.py",
        "    if together and math.prod(",
        "    if math.prod(",
        "receptive_field/test_field.py::test_a_dimension_shared_with_channels_has_no_grid",
    ),
    Mutant(
        "receptive_field/rules.py",
        '(name == "as_strided" and not _covers_storage(call.inputs[0]))',
        "False",
        "analysis/test_field.py::test_as_strided_is_exact_if_the_whole_storage_is_known",
    ),
    Mutant(
        "receptive_field/following.py",
        "            if call.in_place:\n                self._write_through(tensor, field)\n",
        "",
        "analysis/test_field.py::test_fields_of_graphs_agree_with_gradients",
    ),
    Mutant(
        "receptive_field/sliding.py",
        "return Grid(grid.dim, grid.jump * stride, grid.start + (HALF * reach - padding) * grid.jump, size)",
        "return Grid(grid.dim, grid.jump * stride, grid.start + HALF * reach * grid.jump, size)",
        "receptive_field/test_map_grid.py::test_fields_and_strides_agree_with_the_paper",
    ),
    Mutant(
        "receptive_field/map_grid.py",
        "side if grid.size is None else float(grid.size)",
        "float(grid.size or 1)",
        "receptive_field/test_map_grid.py::test_a_resize_keeps_positions_and_may_see_everything",
    ),
    # What a layer costs
    Mutant(
        "analysis/cost.py",
        '(image if call.args.get("transposed") else out).numel() * weight[0].numel()',
        "out.numel() * weight[0].numel()",
        "analysis/test_profile.py::test_a_convolution_costs_what_its_definition_says",
    ),
    Mutant(
        "analysis/trace.py",
        "self.peak = max(self.peak, sum(self.live.values()))",
        "self.peak = sum(self.live.values())",
        "analysis/test_profile.py::test_peak_memory_is_the_most_that_is_live_at_once",
    ),
    Mutant(
        "analysis/trace.py",
        "self.unread.pop(tensor.untyped_storage()._cdata, 0)",
        "self.unread.get(tensor.untyped_storage()._cdata, 0)",
        "analysis/test_profile.py::test_functions_branches_and_repeated_layers_have_rows",
    ),
    # Surgery changes nothing else
    Mutant(
        "surgery/proof/prove.py",
        "        if difference.relative <= allowed:",
        "        if True:",
        "surgery/test_proof.py::test_a_small_weight_error_is_detected",
    ),
    Mutant(
        "surgery/fold.py",
        "    folded = deep_copy(model)\n",
        "    folded = model\n",
        "surgery/test_fold.py::test_the_original_is_unchanged_and_its_settings_are_kept",
    ),
    Mutant(
        "surgery/folding/linear_maps.py",
        "    trained = any(",
        "    trained = all(",
        "surgery/test_fold.py::test_a_merged_layer_requires_gradients_if_either_layer_did",
    ),
    Mutant(
        "surgery/heads/modules.py",
        "        if not layout.plain:",
        "        if False:",
        "surgery/test_convolutionalize.py::test_every_spelling_is_supported",
    ),
    Mutant(
        "surgery/heads/rewrite.py",
        "shadow.train(), shape",
        "shadow.eval(), shape",
        "surgery/test_convolutionalize.py::test_training_is_preserved",
    ),
    Mutant(
        "surgery/heads/rewriter.py",
        "if not self.trial(node).is_per_image():",
        "if False:",
        "surgery/test_rows.py::test_a_step_that_cannot_run_per_cell_is_refused",
    ),
    Mutant(
        "surgery/pool_head.py",
        "return candidate and self.trial(node).is_affine()",
        "return candidate",
        "surgery/test_rows.py::test_a_nonlinear_head_is_refused_with_the_reason",
    ),
    Mutant(
        "surgery/heads/outputs.py",
        "if not any(layers[out.node] < deeper for deeper in layers.values())",
        "if True",
        "surgery/test_outputs.py::test_the_maps_are_those_of_the_logits",
    ),
    Mutant(
        "surgery/heads/crops.py",
        "MapsOnly(precise or changed)",
        "MapsOnly(changed)",
        "surgery/test_rows.py::test_uneven_windows_are_compared_with_unrounded_weights",
    ),
    Mutant(
        "surgery/heads/rewrite.py",
        "if node.target in edits.modules and node.target not in edited:",
        "if False:",
        "surgery/test_outputs.py::test_a_head_module_used_in_training_only_is_unchanged",
    ),
    Mutant(
        "surgery/pool_head.py",
        "nn.Dropout2d(module.p)",
        "nn.Dropout2d(0.9)",
        "surgery/test_pool_head.py::test_training_draws_the_same_numbers_and_gives_the_same_gradients",
    ),
    Mutant(
        "surgery/insertion.py",
        'if self.activation == "relu" and self.written:',
        "if False:",
        "surgery/test_deepen.py::test_gradients_are_right_if_the_network_writes_into_the_output",
    ),
    Mutant(
        "models/external.py",
        "        handle.remove()",
        "        pass",
        "cli/test_profile.py::test_networks_without_weights_are_on_the_meta_device",
    ),
    # Networks refuse what they cannot take
    Mutant(
        "models/validate.py",
        "    if min(size) < min_size:",
        "    if False:",
        "models/test_registry.py::test_invalid_options_are_refused",
    ),
    Mutant(
        "models/base.py",
        "        elif height < self.min_size or width < self.min_size:",
        "        elif False:",
        "contract/test_models.py::test_images_below_the_minimum_size_are_refused_naming_it",
    ),
    Mutant(
        "maps.py",
        "    if not torch.isfinite(maps).all():",
        "    if False:",
        "test_maps.py::test_a_network_that_gives_nan_is_refused",
    ),
    # A run is what it says it is
    Mutant(
        "training/plan.py",
        "    if epochs > MAX_EPOCHS:",
        "    if False:",
        "training/test_plan.py::test_min_steps_beyond_the_maximum_epochs_are_refused",
    ),
    Mutant(
        "training/eager.py",
        "class SGD(_Unmarked, torch.optim.SGD):",
        "class SGD(torch.optim.SGD):",
        "training/test_eager.py::test_training_does_not_import_the_compiler",
    ),
    Mutant(
        "training/loop.py",
        "        if self.epoch_images:\n            return",
        "        if True:\n            return",
        "training/test_loop.py::test_an_epoch_completed_after_a_resume_has_a_throughput",
    ),
    Mutant(
        "training/health.py",
        "if seen[0].ndim == 2 else seen[0].movedim(-1, 1)",
        "if seen[0].ndim == 2 else seen[0]",
        "training/test_health.py::test_repair_handles_a_linear_layer_on_maps",
    ),
    # What people are shown
    Mutant(
        "text.py",
        "letter if letter.isprintable() else _escaped(letter)",
        "letter",
        "test_text.py::test_invisible_characters_are_escaped",
    ),
    Mutant(
        "errors.py",
        "    if len(names) > MAX_LISTED:",
        "    if False:",
        "test_errors.py::test_of_many_names_only_close_ones_are_listed",
    ),
    Mutant(
        "cli/show.py",
        "    if not console.is_terminal:",
        "    if False:",
        "cli/test_show.py::test_in_a_pipe_nothing_is_folded",
    ),
    Mutant(
        "cli/reading.py",
        "        except OSError as error:",
        "        except FileNotFoundError as error:",
        "cli/test_show.py::test_what_cannot_be_read_is_named_and_passed_over",
    ),
    Mutant(
        "plots/receptive_field.py",
        "    coloured.set_clip_path(",
        "    (lambda _: None)(",
        "plots/test_receptive_field.py::test_only_the_receptive_field_is_in_colour",
    ),
    Mutant(
        "plots/style.py",
        "    write_atomic(Path(path), ",
        "    Path(path).write_bytes(",
        "plots/test_plots.py::test_a_figure_replaces_the_old_file_whole_or_not_at_all",
    ),
    # Lower ranks
    Mutant(
        "models/blocks.py",
        "max(self.parameters, self._parameters(full_rank=True))",
        "self.parameters",
        "models/test_ranks.py::test_oversized_ranks_and_channels_are_refused_before_allocation",
    ),
    Mutant(
        "models/blocks.py",
        '    return plain | ({"ranks": [list(pair) for pair in ranks]} if ranks else {})',
        '    return plain | {"ranks": [list(pair) for pair in ranks]}',
        "models/test_ranks.py::test_model_files_without_ranks_are_unchanged",
    ),
    Mutant(
        "modelfile/store.py",
        'return 2 if any("ranks" in block',
        'return 1 if any("ranks" in block',
        "models/test_ranks.py::test_a_model_file_has_a_version_that_older_programs_refuse",
    ),
    Mutant(
        "models/folding.py",
        "_scale(parts_of(block.convs[index])[-1], scale, shift)",
        "_scale(parts_of(block.convs[index])[0], scale, shift)",
        "models/test_ranks.py::test_norms_fold_into_the_last_convolution",
    ),
    Mutant(
        "inference/layer_chain.py",
        "return max(outputs), sum(macs), float(torch.tensor(bounds).max())",
        "return max(outputs), sum(macs), max(bounds)",
        "inference/test_engine.py::test_other_networks_and_hopeless_ones_have_no_engine",
    ),
    Mutant(
        "inference/engine.py",
        "return graph if close(graph(x), network(x), x.dtype) else network",
        "return graph",
        "inference/test_engine.py::test_a_graph_that_cannot_be_trusted_is_not_used",
    ),
    Mutant(
        "inference/engine.py",
        "            torch.jit.enable_onednn_fusion(before)\n",
        "            pass\n",
        "inference/test_engine.py::test_a_graph_is_oneDNN_s_and_stays_so_where_the_setting_is_as_before",
    ),
    Mutant(
        "inference/classifier.py",
        'return self.__dict__ | {"_dispatcher": None}',
        "return self.__dict__",
        "test_threads.py::test_a_classifier_can_be_pickled_after_predicting",
    ),
    Mutant(
        "cli/paths.py",
        "        if real in above:\n",
        "        if False:\n",
        "cli/test_paths.py::test_loops_of_links_end",
    ),
    Mutant(
        "inference/classifier.py",
        "and x.shape[0] and tuple(x.shape[1:]) == self.input_size",
        "and len(x)",
        "inference/test_engine.py::test_images_of_another_size_go_to_the_plain_network",
    ),
    Mutant(
        "inference/layer_chain.py",
        "        if not parts:\n            raise Unsupported\n",
        "",
        "models/test_ranks.py::test_the_engine_computes_the_same",
    ),
    Mutant(
        "models/reconfigure.py",
        "    ranks = (*grown.ranks, WHOLE) if grown.ranks else ()\n",
        "    ranks = grown.ranks\n",
        "models/test_ranks.py::test_a_factorized_block_can_be_deepened",
    ),
    Mutant(
        "models/reconfigure.py",
        '    return "is the fully connected head, for which the configuration has no rank"',
        '    return ""',
        "surgery/test_factorize.py::test_a_nin_keeps_its_class_and_configuration",
    ),
    Mutant(
        "surgery/lowrank/activation_stats.py",
        "tensor.movedim(-1, 1) if isinstance(layer, nn.Linear) else tensor ",
        "tensor ",
        "surgery/test_factorize.py::test_layers_of_low_rank_are_detected_and_lose_nothing",
    ),
    Mutant(
        "surgery/lowrank/activation_stats.py",
        "        if len(outputs) == candidate.calls:\n",
        "        if True:\n",
        "surgery/test_factorize.py::test_a_layer_that_is_called_twice_is_fitted_to_both_calls",
    ),
    Mutant(
        "surgery/lowrank/candidates.py",
        "image = image.to(weight.device, weight.dtype)",
        "image = image.to(weight.device)",
        "surgery/test_factorize.py::test_dtype_memory_format_and_requires_grad_are_kept",
    ),
    Mutant(
        "surgery/lowrank/rank_search.py",
        "            if self.errors(factorized)[measure] - before <= budget:",
        "            if choice.error <= budget:",
        "surgery/test_factorize.py::test_the_budget_of_classification_error_is_kept",
    ),
    Mutant(
        "surgery/lowrank/batches.py",
        "    if not bool(images.isfinite().all()):",
        "    if False:",
        "surgery/test_factorize.py::test_invalid_data_are_refused",
    ),
    Mutant(
        "surgery/lowrank/factors.py",
        "    return layer.requires_grad_(like.weight.requires_grad)",
        "    return layer",
        "surgery/test_factorize.py::test_dtype_memory_format_and_requires_grad_are_kept",
    ),
    Mutant(
        "surgery/lowrank/distill.py",
        "        optimizer.step()\n",
        "",
        "surgery/test_factorize.py::test_fine_tuning_reduces_the_error",
    ),
    Mutant(
        "cli/factorize.py",
        "    files = files[:: -(-len(files) // limit)]\n",
        "    files = files[:limit]\n",
        "cli/test_factorize.py::test_images_are_spread_over_the_list",
    ),
    Mutant(
        "surgery/tracing/tracer.py",
        ' or node.op == "get_attr" or node in replaced)',
        ' or node.op == "get_attr")',
        "surgery/test_convolutionalize.py::test_every_step_runs_once_for_every_spelling_of_flatten",
    ),
    # What the explorer's page takes and writes
    Mutant(
        "explorer/app.py",
        '        if request.headers.get("content-type") != "application/octet-stream":',
        "        if False:",
        "explorer/test_app.py::test_a_form_of_another_site_cannot_add_an_image",
    ),
    Mutant(
        "explorer/app.py",
        "        if size > MAX_BODY:",
        "        if False:",
        "explorer/test_app.py::test_a_body_without_end_is_cut_off",
    ),
    Mutant(
        "explorer/subject.py",
        "            if len(self.names) >= MAX_IMAGES:",
        "            if False:",
        "explorer/test_app.py::test_there_is_an_end_to_images",
    ),
    Mutant(
        "deploy/serving.py",
        "        hosts = LOCAL_HOSTS\n",
        "        hosts = None\n",
        "cli/test_explore.py::test_the_server_answers_on_this_machine_and_ends_with_ctrl_c",
    ),
    Mutant(
        "explorer/site.py",
        "    if size > MOST_BYTES:",
        "    if False:",
        "explorer/test_site.py::test_a_site_that_is_too_large_is_not_written",
    ),
    Mutant(
        "explorer/site.py",
        "    if not force and folder.is_dir() and any(folder.iterdir()):",
        "    if False:",
        "explorer/test_site.py::test_a_folder_with_content_is_not_overwritten",
    ),
    # What a teacher says
    Mutant(
        "training/step.py",
        "view = flips(self.augmentation, **place, index=index).long()",
        "view = 0 * index",
        "training/test_loss.py::test_soft_targets_are_those_of_the_view_that_an_image_shows",
    ),
    Mutant(
        "transfer/teacher.py",
        "[logits[:, columns] for logits in part]",
        "[logits for logits in part]",
        "transfer/test_teacher.py::test_the_outputs_of_a_teacher_are_found_by_class_name_and_resized_image",
    ),
    Mutant(
        "transfer/teacher.py",
        'if recorded.get("sha256", checksum) != checksum:',
        "if False:",
        "transfer/test_teacher.py::test_a_resumed_run_keeps_its_teacher",
    ),
    Mutant(
        "transfer/teacher.py",
        "open_as_read(data, None, classifier, dataset.membership)",
        "open_as_read(data, None, classifier, None)",
        "transfer/test_teacher.py::test_the_files_of_a_folder_are_read_in_the_size_of_the_teacher",
    ),
)
