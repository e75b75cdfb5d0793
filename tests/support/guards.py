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
        "receptive_field/test_field.py::test_elements_that_are_there_twice_make_no_grid",
    ),
    Mutant(
        "receptive_field/field.py",
        "size=size if len(sized) == len(grids) else None",
        "size=size",
        "analysis/test_field.py::test_a_global_layer_sees_all_and_a_gate_keeps_the_cells",
    ),
    Mutant(
        "receptive_field/rules.py",
        "    if one and math.prod(",
        "    if math.prod(",
        "receptive_field/test_field.py::test_a_dimension_shared_with_channels_has_no_grid_whatever_the_sizes",
    ),
    Mutant(
        "receptive_field/rules.py",
        '(name == "as_strided" and not _shows_all(call.inputs[0]))',
        "False",
        "analysis/test_field.py::test_a_storage_looked_at_again_is_exact_where_all_of_it_was_known",
    ),
    Mutant(
        "receptive_field/following.py",
        "            if call.in_place:\n                self._write_through(tensor, field)\n",
        "",
        "analysis/test_field.py::test_graphs_see_what_gradients_say",
    ),
    Mutant(
        "receptive_field/sliding.py",
        "return Grid(grid.dim, grid.jump * stride, grid.start + (HALF * reach - padding) * grid.jump, size)",
        "return Grid(grid.dim, grid.jump * stride, grid.start + HALF * reach * grid.jump, size)",
        "receptive_field/test_map_grid.py::test_fields_and_strides_are_the_papers",
    ),
    Mutant(
        "receptive_field/map_grid.py",
        "side if grid.size is None else float(grid.size)",
        "float(grid.size or 1)",
        "receptive_field/test_map_grid.py::test_a_resize_inside_keeps_the_places_and_may_see_everything",
    ),
    # What a layer costs
    Mutant(
        "analysis/cost.py",
        '(image if call.args.get("transposed") else out).numel() * weight[0].numel()',
        "out.numel() * weight[0].numel()",
        "analysis/test_profile.py::test_one_layer_counts_as_the_definition_says",
    ),
    Mutant(
        "analysis/trace.py",
        "self.peak = max(self.peak, sum(self.live.values()))",
        "self.peak = sum(self.live.values())",
        "analysis/test_profile.py::test_the_peak_is_what_is_alive_at_once",
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
        "        if each.relative <= allowed:",
        "        if True:",
        "surgery/test_proof.py::test_a_weight_that_is_off_is_found_however_little",
    ),
    Mutant(
        "surgery/fold.py",
        "    made = deep_copy(model)\n",
        "    made = model\n",
        "surgery/test_fold.py::test_the_network_stays_as_it_is_and_what_it_has_is_kept",
    ),
    Mutant(
        "surgery/folding/linear_maps.py",
        "    trained = any(",
        "    trained = all(",
        "surgery/test_fold.py::test_one_of_two_layers_is_trained_where_either_was",
    ),
    Mutant(
        "surgery/heads/modules.py",
        "        if not layout.plain:",
        "        if False:",
        "surgery/test_convolutionalize.py::test_every_spelling_is_understood",
    ),
    Mutant(
        "surgery/heads/rewrite.py",
        "shadow.train(), shape",
        "shadow.eval(), shape",
        "surgery/test_convolutionalize.py::test_training_is_the_same_too",
    ),
    Mutant(
        "surgery/heads/rewriter.py",
        "if not self.trial(node).by_image():",
        "if False:",
        "surgery/test_rows.py::test_what_has_no_counterpart_on_cells_is_refused_with_the_step",
    ),
    Mutant(
        "surgery/pool_head.py",
        "return may and self.trial(node).affine()",
        "return may",
        "surgery/test_rows.py::test_a_head_that_is_not_linear_is_refused_with_the_reason",
    ),
    Mutant(
        "surgery/heads/outputs.py",
        "if not any(passed[each.node] < other for other in passed.values())",
        "if True",
        "surgery/test_outputs.py::test_the_maps_are_those_of_the_logits",
    ),
    Mutant(
        "surgery/heads/crops.py",
        "MapsOnly(precise or changed)",
        "Maps(changed)",
        "surgery/test_rows.py::test_uneven_windows_are_compared_with_weights_that_are_not_rounded",
    ),
    Mutant(
        "surgery/heads/rewrite.py",
        "if node.target in edits.modules and node.target not in edited:",
        "if False:",
        "surgery/test_outputs.py::test_a_module_of_the_head_in_training_alone_stays_what_it_was",
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
        "surgery/test_deepen.py::test_what_is_written_into_can_be_trained_all_the_same",
    ),
    Mutant(
        "models/external.py",
        "        handle.remove()",
        "        pass",
        "cli/test_profile.py::test_a_network_that_is_only_looked_at_takes_no_memory_for_its_weights",
    ),
    # Networks refuse what they cannot take
    Mutant(
        "models/validate.py",
        "    if min(size) < least:",
        "    if False:",
        "models/test_registry.py::test_what_makes_no_sense_is_refused",
    ),
    Mutant(
        "models/base.py",
        "        elif height < self.min_size or width < self.min_size:",
        "        elif False:",
        "contract/test_models.py::test_below_the_minimum_is_refused_and_the_minimum_named",
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
        "    if epochs > MOST_EPOCHS:",
        "    if False:",
        "training/test_plan.py::test_more_epochs_than_any_run_has_are_refused_by_the_setting_that_was_given",
    ),
    Mutant(
        "training/eager.py",
        "class SGD(_Unmarked, torch.optim.SGD):",
        "class SGD(torch.optim.SGD):",
        "training/test_eager.py::test_training_imports_no_compiler",
    ),
    Mutant(
        "training/loop.py",
        "        if self.epoch_images:\n            return",
        "        if True:\n            return",
        "training/test_loop.py::test_an_epoch_that_ended_where_the_run_was_stopped_has_a_speed",
    ),
    Mutant(
        "training/health.py",
        "if seen[0].ndim == 2 else seen[0].movedim(-1, 1)",
        "if seen[0].ndim == 2 else seen[0]",
        "training/test_health.py::test_repair_reaches_a_linear_layer_that_makes_maps",
    ),
    # What people are shown
    Mutant(
        "text.py",
        "letter if letter.isprintable() else _escaped(letter)",
        "letter",
        "test_text.py::test_what_is_not_seen_is_escaped",
    ),
    Mutant(
        "errors.py",
        "    if len(names) > MOST_NAMED:",
        "    if False:",
        "test_errors.py::test_of_very_many_names_only_those_near_are_given",
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
        "plots/test_receptive_field.py::test_the_colours_are_those_of_the_pixels_that_are_seen",
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
        "max(self.parameters, self._parameters(whole=True))",
        "self.parameters",
        "models/test_ranks.py::test_neither_large_ranks_nor_what_they_stand_for_take_memory",
    ),
    Mutant(
        "models/blocks.py",
        '    return plain | ({"ranks": [list(pair) for pair in ranks]} if ranks else {})',
        '    return plain | {"ranks": [list(pair) for pair in ranks]}',
        "models/test_ranks.py::test_files_of_networks_without_ranks_are_what_they_were",
    ),
    Mutant(
        "modelfile/store.py",
        'return 2 if any("ranks" in block',
        'return 1 if any("ranks" in block',
        "models/test_ranks.py::test_a_model_file_holds_it_and_older_programs_are_told",
    ),
    Mutant(
        "models/folding.py",
        "_scale(parts_of(block.convs[place])[-1], scale, shift)",
        "_scale(parts_of(block.convs[place])[0], scale, shift)",
        "models/test_ranks.py::test_norms_fold_into_the_last_part",
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
        "test_threads.py::test_a_classifier_can_be_sent_after_it_has_predicted",
    ),
    Mutant(
        "cli/paths.py",
        "        if real in above:\n",
        "        if False:\n",
        "cli/test_paths.py::test_loops_of_links_end",
    ),
    Mutant(
        "inference/classifier.py",
        "and len(x) and tuple(x.shape[1:]) == self.input_size",
        "and len(x)",
        "inference/test_engine.py::test_images_of_another_size_go_to_the_plain_network",
    ),
    Mutant(
        "inference/engine.py",
        "        if not parts or any(",
        "        if any(",
        "models/test_ranks.py::test_the_engine_computes_the_same",
    ),
    Mutant(
        "models/reconfigure.py",
        "    ranks = (*grown.ranks, WHOLE) if grown.ranks else ()\n",
        "    ranks = grown.ranks\n",
        "models/test_ranks.py::test_a_block_of_lower_rank_is_deepened",
    ),
    Mutant(
        "models/reconfigure.py",
        '    return "is the fully connected head, for which its architecture has no rank"',
        '    return ""',
        "surgery/test_factorize.py::test_a_network_of_ours_stays_one",
    ),
    Mutant(
        "surgery/lowrank/activation_stats.py",
        "tensor.movedim(-1, 1) if isinstance(layer, nn.Linear) else tensor ",
        "tensor ",
        "surgery/test_factorize.py::test_what_has_a_low_rank_is_found_and_loses_nothing",
    ),
    Mutant(
        "surgery/lowrank/activation_stats.py",
        "        if len(found) == each.calls:\n",
        "        if True:\n",
        "surgery/test_factorize.py::test_a_layer_that_is_called_twice_is_fitted_to_both_calls",
    ),
    Mutant(
        "surgery/lowrank/candidates.py",
        "image = image.to(weight.device, weight.dtype)",
        "image = image.to(weight.device)",
        "surgery/test_factorize.py::test_formats_and_what_may_be_trained_are_kept",
    ),
    Mutant(
        "surgery/lowrank/rank_search.py",
        "            if self.errors(changed)[what] - before <= budget:",
        "            if choice.error <= budget:",
        "surgery/test_factorize.py::test_the_budget_of_wrong_classes_is_kept",
    ),
    Mutant(
        "surgery/lowrank/batches.py",
        "    if not bool(images.isfinite().all()):",
        "    if False:",
        "surgery/test_factorize.py::test_data_that_make_no_sense_are_refused",
    ),
    Mutant(
        "surgery/lowrank/factors.py",
        "    return made.requires_grad_(like.weight.requires_grad)",
        "    return made",
        "surgery/test_factorize.py::test_formats_and_what_may_be_trained_are_kept",
    ),
    Mutant(
        "surgery/lowrank/distill.py",
        "        optimizer.step()\n",
        "",
        "surgery/test_factorize.py::test_fine_tuning_comes_nearer_to_the_original",
    ),
    Mutant(
        "cli/factorize.py",
        "    files = files[:: -(-len(files) // most)]\n",
        "    files = files[:most]\n",
        "cli/test_factorize.py::test_images_come_from_all_over_the_list",
    ),
    Mutant(
        "surgery/tracing/tracer.py",
        ' or node.op == "get_attr" or node in replaced)',
        ' or node.op == "get_attr")',
        "surgery/test_convolutionalize.py::test_every_step_is_done_once_however_flattening_is_spelled",
    ),
)
