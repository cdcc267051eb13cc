"""Which tests are slow, and which start processes: `scripts/test --fast` leaves both out.

A test that starts a process is found by what it and its fixtures reach: `subprocess`, or one of STARTERS. Where that
cannot be read from the code (a pool that is started for some arguments) the test carries the marker itself. Either way
`tests/conftest.py` refuses a process to a test without the marker, so the selection is true of what runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

STARTERS = {
    "cli.demo.robot_process.run_robot",
    "cli.private_service.private_service",
    "model.processes.isolated.IsolatedProcess",
    "model.video.decoder_worker.ClipDecoder",
    "server.engine.supervisor.Engine",
    "server.service.application.Application",
    "server.transport.listeners.listening",
    "server.transport.parsers.Parsers",
}
"""What of Presage starts a process when it is called."""

EVERY = ("*",)
SLOW: dict[str, tuple[str, ...]] = {
    "benchmarks/test_accelerator.py": ("test_every_figure_that_is_wanted_is_measured",),
    "benchmarks/test_planning.py": (
        "test_works_run_in_turns_and_matrix_products_are_counted",
        "test_tables_of_the_compact_family_say_what_was_measured",
        "test_tables_of_the_vjepa2_family_say_what_was_measured",
    ),
    "cli/data/test_inspect.py": (
        "test_a_dimension_that_does_not_vary_is_held_and_said_and_ends_no_training",
        "test_a_model_is_trained_on_a_dataset_and_sees_any_camera_image",
        "test_a_training_does_not_go_on_with_other_recordings_or_another_image_size",
        "test_poses_in_other_units_are_doubted_in_training_as_in_planning",
    ),
    "cli/test_evaluate.py": (
        "test_a_person_reads_a_table",
        "test_a_report_shows_rates_plots_and_filmstrips_and_needs_nothing_else",
        "test_an_evaluation_has_its_keys_and_adds_up",
        "test_json_on_stdout_is_all_there_is_and_repeats",
        "test_recorded_scores_stand_in_the_package",
    ),
    "cli/test_replay.py": ("test_a_plan_that_is_another_now_is_a_failure",),
    "cli/train/test_command.py": (
        "test_a_config_makes_a_package_and_the_same_one_again",
        "test_a_package_that_is_given_no_folder_is_named_after_its_config",
        "test_collected_episodes_train_like_those_gathered_on_the_way",
    ),
    "cli/train/test_frozen.py": ("test_a_part_is_trained_for_a_built_in_package", "test_labels_can_be_read_first"),
    "client/test_failed_calls.py": ("test_an_absent_server_is_unreachable_by_name", "test_retries_end"),
    "docs/test_training_page.py": ("test_the_pages_commands_run_in_order",),
    "model/checkpoints/test_importer.py": (
        "test_a_file_under_another_name_is_known_by_its_shapes",
        "test_import_takes_the_chosen_encoder_and_the_predictor_alone",
    ),
    "model/compact/test_world_model.py": ("test_a_later_action_changes_no_earlier_prediction",),
    "model/dino_wm/test_importing.py": (
        "test_a_file_of_another_name_is_known_by_its_shape_or_asked_about",
        "test_a_released_file_of_full_size_is_imported_and_plans",
    ),
    "model/layers/test_prepacked_linear.py": ("test_a_served_model_plans_on_packed_layers_as_on_plain_ones",),
    "model/lewm/test_network.py": ("test_the_released_config_describes_the_released_keys",),
    "model/runtime/test_waiting.py": (
        "test_a_compact_rollout_waits_for_nothing",
        "test_a_vjepa2_rollout_waits_for_nothing",
    ),
    "model/vjepa2/test_classify.py": ("test_a_hugging_face_classifier_gives_the_same_scores_from_the_same_pictures",),
    "model/vjepa2/test_transformers.py": ("test_parity_with_transformers_after_import",),
    "planner/optimizers/test_gauss_newton.py": ("test_with_bounds_in_the_way_it_finds_what_a_long_descent_finds",),
    "planner/optimizers/test_known_optima.py": EVERY,  # they share a minute of searches
    "planner/test_constraints.py": (
        "test_a_batch_projects_each_search_by_its_own_limits",
        "test_committed_actions_are_kept_and_what_follows_obeys",
        "test_no_projected_action_violates_anything",
    ),
    "planner/test_obedience.py": (
        "test_no_action_breaks_a_limit",
        "test_what_is_executed_over_several_plans_breaks_no_limit",
    ),
    "planner/test_transfer.py": (
        "test_a_search_at_another_iteration_than_its_company_is_not_waited_for",
        "test_an_iteration_waits_for_the_device_once",
    ),
    "server/recording/test_recorder.py": (
        "test_all_files_together_stay_within_their_bytes_and_the_newest_plans_stay",
        "test_plans_of_a_service_that_was_killed_can_be_read",
    ),
    "server/transport/grpc/test_codec.py": ("test_no_claim_about_bytes_breaks_the_check",),
    "server/transport/openpi/test_codec.py": ("test_no_bytes_do_anything_but_unpack_or_be_refused",),
    "server/worker/scheduling/test_fair_queue.py": (
        "test_a_score_of_any_length_leaves_another_callers_plan_in_time",
        "test_one_callers_plan_takes_no_longer_however_many_another_has_waiting",
    ),
    "server/worker/test_batch_invariance.py": ("test_company_changes_no_plan",),
    "server/worker/test_cuda_graphs.py": ("test_what_is_captured_is_what_the_models_own_search_can_ask_for",),
    "server/worker/test_precision.py": (
        "test_8_bit_floats_are_judged_by_the_plans_they_choose",
        "test_a_precision_that_chooses_the_same_actions_agrees_and_a_ruined_one_does_not",
        "test_a_ruined_precision_is_not_taken_however_fast",
        "test_what_agrees_and_is_faster_is_taken",
    ),
    "server/worker/test_work_once.py": ("test_an_engine_reads_weights_once_and_holds_two_networks_at_most",),
    "simulation/robots/test_arm_push.py": (
        "test_a_batch_moves_each_robot_as_it_would_alone",
        "test_the_puck_is_never_inside_the_link_and_never_leaves_its_range",
    ),
    "simulation/robots/test_pusht.py": ("test_the_oracle_repeats_what_led_to_held_out_goals_and_then_stays",),
    "simulation/robots/test_tworoom.py": ("test_the_oracle_solves_every_held_out_pair_and_chance_few",),
    "simulation/test_episodes.py": ("test_exploring_pushes_the_puck_in_every_direction",),
    "simulation/test_manifest.py": ("test_the_first_pairs_of_a_manifest_are_what_its_seeds_give",),
    "simulation/test_policies.py": (
        "test_acting_at_random_seldom_solves_a_held_out_pair",
        "test_the_push_oracle_solves_held_out_pairs",
    ),
    "training/action_conditioned/test_train.py": ("test_loss_falls_and_actions_are_used",),
    "training/compact/test_initialization.py": (
        "test_a_head_with_places_begins_with_what_the_mean_it_starts_from_says",
        "test_a_training_that_starts_from_a_package_has_its_weights",
    ),
    "training/compact/test_sigreg.py": ("test_descent_on_the_statistic_makes_a_collapsed_batch_gaussian",),
    "training/compact/test_train.py": (
        "test_a_frozen_encoder_stays_and_its_predictor_learns",
        "test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_checkpoint",
        "test_a_resumed_training_has_the_same_losses_and_weights",
        "test_a_slow_basis_changes_what_is_far_and_nothing_else",
        "test_batches_that_are_accumulated_count_as_one",
        "test_latents_can_be_told_what_no_action_moves",
        "test_training_finds_the_dot",
        "test_what_a_robot_measures_tells_a_prediction_what_no_frame_shows",
        "test_overfitting_shows_in_the_loss_of_held_out_episodes",
    ),
    "training/data/formats/test_pairing.py": ("test_no_row_of_any_dataset_gets_the_frame_of_another",),
    "training/evaluation/test_closed_loop.py": ("test_a_blind_model_does_no_better_than_random",),
    "training/evaluation/test_replanning.py": EVERY,
    "training/evaluation/test_true_dynamics.py": ("test_a_search_with_the_true_dynamics_reaches_the_arms_goals",),
    "training/masked/test_train.py": ("test_pretraining_improves_a_linear_probe",),
}
"""Tests that take more than half a second on one core, by file. Measured with `scripts/test --durations=0`."""


def is_slow(file: str, name: str) -> bool:
    """Whether the test `name`, without its parameters, of a file below `tests/` is slow."""
    names = SLOW.get(file, ())
    return names == EVERY or name in names


def starts_process(functions: list[Callable[..., Any]]) -> bool:
    """Whether one of a test's functions, or a helper in `tests` that it reaches, starts a process."""
    return any(_starts(inspect.unwrap(function)) for function in functions)


@cache
def _starts(function: Callable[..., Any], seen: tuple[object, ...] = ()) -> bool:
    if not isinstance(function, FunctionType) or function in seen:
        return False
    names = set(_names(function.__code__))
    for found in _found(names, function.__globals__):
        if _is_starter(found):
            return True
        for helper in _of_tests(found):
            if _starts(helper, (*seen, function)):
                return True
    return False


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _found(names: set[str], scope: dict[str, Any]) -> Iterator[Any]:
    """What the names stand for in a module, and in the modules that it names."""
    for name in names & scope.keys():
        yield scope[name]
        if isinstance(scope[name], ModuleType):
            yield from (vars(scope[name])[each] for each in names & vars(scope[name]).keys())


def _is_starter(found: Any) -> bool:
    if isinstance(found, ModuleType):
        return found.__name__ == "subprocess"
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return module == "subprocess" or f"{module}.{name}" in STARTERS


def _of_tests(found: Any) -> Iterator[Callable[..., Any]]:
    """The functions of a helper in `tests`: itself, or the methods of a class."""
    if not str(getattr(found, "__module__", "")).startswith("tests."):
        return
    for each in vars(found).values() if isinstance(found, type) else (found,):
        if callable(each):
            yield inspect.unwrap(each)
