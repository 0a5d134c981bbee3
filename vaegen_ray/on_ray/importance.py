"""Which axes of a search mattered, for each objective."""

import optuna

from vaegen_ray.config.search import SearchJob
from vaegen_ray.on_ray.samplers import distributions
from vaegen_ray.search.trials import Trials, TrialState

FEWEST_TRIALS = 10
"""Fully trained ones; with fewer an importance is noise."""


def importances(job: SearchJob, trials: Trials) -> dict[str, dict[str, float]]:
    """Metric of an objective to axis to its part of what the best trials have in common; parts sum to 1.

    PED-ANOVA (Watanabe et al. 2023) on the fully trained trials, of the axes that all of them drew. Empty where too
    few trials are fully trained.
    """
    trained = [trials[number] for number in sorted(trials.by_state[TrialState.COMPLETE])]
    common = [name for name in job.space if all(name in trial.settings for trial in trained)]
    if len(trained) < FEWEST_TRIALS or not common:
        return {}
    space = {name: distribution for name, distribution in distributions(job).items() if name in common}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict[str, dict[str, float]] = {}
    for goal in job.objectives:
        study = optuna.create_study(direction=goal.goal)
        study.add_trials(
            optuna.trial.create_trial(
                params={name: trial.settings[name] for name in common},
                distributions=space,
                value=trial.scores[goal.metric],
            )
            for trial in trained
        )
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found[goal.metric] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return found
