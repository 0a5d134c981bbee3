"""The Optuna study of a search: where it is stored, what it is told of a trial, and its agreement with the log.

The log is the truth. The study is what the sampler learns from and `optuna-dashboard` shows; whatever happened to
it, :func:`reconcile` makes it say what the log says.
"""

import json
import logging
import tempfile
import threading
import warnings
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from vaegen_ray.config.search import SearchJob
from vaegen_ray.config.space import contains, in_order, is_active
from vaegen_ray.config.url_secrets import without_url_secrets
from vaegen_ray.errors import JobError, StorageError
from vaegen_ray.on_ray.samplers import distributions
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog, read_trials
from vaegen_ray.search.trials import Trial, Trials, TrialState, asked, ended, scored
from vaegen_ray.storage import Location

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_UPLOADS = 60.0

SEARCH = "search"
"""Attribute of the study: the directory of the search whose it is."""

WARM_START = "warm_start"
"""User attribute of trials of an earlier search: its directory and the trial's number there."""

UNTRAINABLE = "trainable"
"""Constraint that trials break which no sampler should repeat: they diverged, ran out of memory, make no job."""
WORST_EXCESS = 1e6

# ---------------------------------------------------------------------------- the study


class SearchStudy:
    """An Optuna study whose trials have our numbers: those of earlier searches stand before trial 0."""

    def __init__(self, job: SearchJob, optuna_study: Study) -> None:
        self.job = job
        self.has_half_drawn = False
        """Whether the last trial lacks settings: the search was killed while it chose them."""
        self._use(optuna_study)

    def _use(self, optuna_study: Study) -> None:
        self.optuna = optuna_study
        self.storage = optuna_study._storage
        trials = optuna_study.get_trials(deepcopy=False)
        self.num_earlier = sum(WARM_START in trial.user_attrs for trial in trials)

    def trials(self) -> list[FrozenTrial]:
        """The trials of this search, by our numbers; to be read only."""
        return self.optuna.get_trials(deepcopy=False)[self.num_earlier :]

    def begin(self) -> tuple[int, int]:
        """Add a trial without settings, or take the one that is half drawn; returns Optuna's id, and our number."""
        if self.has_half_drawn:
            self.has_half_drawn = False
            trial_id = self.optuna.get_trials(deepcopy=False)[-1]._trial_id
        else:
            trial_id = self.storage.create_new_trial(self.optuna._study_id)
        return trial_id, self.storage.get_trial(trial_id).number - self.num_earlier

    def tell(self, trial: Trial) -> None:
        """Say how ``trial``, which is over, ended."""
        storage = self.storage
        number = trial.number + self.num_earlier
        trial_id = storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number)
        state, values, constraints = _outcome(self.job, trial)
        for name, excess in constraints.items():
            # What optuna.Trial.set_constraint does, which needs the object that only asking gives.
            storage.set_trial_system_attr(trial_id, f"constraints:{name}", excess)
        for name, value in _attributes(trial).items():
            storage.set_trial_user_attr(trial_id, name, value)
        for position, value in _intermediate_values(self.job, trial).items():
            storage.set_trial_intermediate_value(trial_id, position, value)
        storage.set_trial_state_values(trial_id, state, values)
        self.flush()

    def write_anew(self, trials: Trials) -> None:
        """Replace the study by one that holds the same earlier trials, and ``trials``."""
        earlier = [trial for trial in self.optuna.get_trials() if WARM_START in trial.user_attrs]
        optuna.delete_study(study_name=self.optuna.study_name, storage=self.storage)
        anew = _create(self.job, self.storage)
        anew.add_trials(earlier)
        self._use(anew)
        anew.add_trials(_frozen(self.job, trials[number]) for number in range(len(trials)))

    def flush(self) -> None:
        """What the study was told outlives a kill of this process."""
        if self._journal is not None:
            self._journal.flush()

    def close(self) -> None:
        """Everything that the study was told is in storage when this returns."""
        if self._journal is not None:
            self._journal.close()

    @property
    def _journal(self) -> "_Journal | None":
        backend = getattr(self.storage, "_backend", None)
        return backend if isinstance(backend, _Journal) else None


def open_study(job: SearchJob, directory: SearchDirectory, database: BaseStorage | None = None) -> SearchStudy:
    """Open the study of the search, or begin it, with the trials of ``job.warm_start`` before its own.

    It is in ``database``, that of ``job.study``, which is opened here where it is not yet.

    A journal stands next to the search, in the format that `optuna-dashboard` reads; of an object store it is a copy
    that is a minute old at most.
    """
    if job.study is None:
        study = _create(job, JournalStorage(_Journal(directory.study)))
    else:
        study = _create(job, database or open_database(job.study))
        _check_is_of(directory, study)
    already = study.get_trials(deepcopy=False)
    if all(WARM_START in trial.user_attrs for trial in already):
        earlier = [(url, trial) for url in job.warm_start for trial in _earlier_trials(job, url)]
        for url, trial in earlier[len(already) :]:
            study.add_trial(_frozen(job, trial, {WARM_START: f"{url}#{trial.number}"}))
    return SearchStudy(job, study)


def open_database(url: str) -> BaseStorage:
    """The database of a job's ``study``; JobError where the URL is none, StorageError where nothing answers."""
    shown = without_url_secrets(url)
    try:
        return optuna.storages.get_storage(url)
    except OperationalError as error:
        raise StorageError(
            f"study: {shown} does not answer ({_first_line(error)}); check host, name and path"
        ) from error
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise JobError(
            "study: must be the URL of a database, such as sqlite:////shared/study.db or postgresql://host/name, got "
            f"{shown} ({_first_line(error)}); correct it, install what it needs, or leave it out"
        ) from error


def _first_line(error: Exception) -> str:
    return without_url_secrets(str(error).splitlines()[0]) if str(error) else type(error).__name__


def _check_is_of(directory: SearchDirectory, study: Study) -> None:
    """A database may hold studies of other searches of the same name."""
    owner = study.user_attrs.get(SEARCH)
    if owner is None:
        study.set_user_attr(SEARCH, directory.root.url)
    elif owner != directory.root.url:
        raise JobError(
            f"study: '{study.study_name}' in that database is the study of the search {owner}, and this one is "
            f"{directory.root}; give this search another name, or remove that study"
        )


def _create(job: SearchJob, storage: BaseStorage) -> Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=job.name, directions=[goal.goal for goal in job.objectives], load_if_exists=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([goal.metric for goal in job.objectives])
    return study


def _earlier_trials(job: SearchJob, url: str) -> list[Trial]:
    trials = [
        trial
        for trial in read_trials(SearchDirectory(Location.of(url)))
        if trial.state in (TrialState.COMPLETE, TrialState.STOPPED)
    ]
    fitting = [trial for trial in trials if _lies_in_space(job, trial) and _has_scores(job, trial)]
    if not fitting:
        logger.warning(
            "warm_start: none of the %d finished trials of %s lies in the space; nothing is learnt", len(trials), url
        )
    return fitting


def _lies_in_space(job: SearchJob, trial: Trial) -> bool:
    active = {name for name, axis in in_order(job.space) if is_active(axis, trial.settings)}
    return active == trial.settings.keys() and all(
        contains(job.space[name], value) for name, value in trial.settings.items()
    )


def _has_scores(job: SearchJob, trial: Trial) -> bool:
    return trial.state is not TrialState.COMPLETE or all(metric in trial.scores for metric in job.metrics)


# ---------------------------------------------------------------------------- telling


def _outcome(job: SearchJob, trial: Trial) -> tuple[StudyState, list[float] | None, dict[str, float]]:
    """State, values and constraints of the trial in the study.

    Optuna 5's TPE looks at COMPLETE and PRUNED trials only. It takes the good ones from the feasible COMPLETE, then
    from the PRUNED, then from those that break constraints; all others count as bad. So a trial that the scheduler
    stopped is PRUNED, and settings that diverge are PRUNED and break a constraint: they repel. A trial that was
    lost is FAIL, which no sampler looks at: its settings are not to blame.
    """
    match trial.state:
        case TrialState.COMPLETE:
            values = [trial.scores[goal.metric] for goal in job.objectives]
            return StudyState.COMPLETE, values, _constraints(job, trial.scores)
        case TrialState.STOPPED:
            last = trial.rungs.get(trial.position, {})
            # The value of a PRUNED trial is its last one; Optuna has none for several objectives.
            pruned = list(_intermediate_values(job, trial).values())[-1:] or None
            return StudyState.PRUNED, pruned, _constraints(job, last)
        case TrialState.FAILED if trial.was_lost:
            return StudyState.FAIL, None, {}
        case TrialState.FAILED | TrialState.INVALID:
            return StudyState.PRUNED, None, {UNTRAINABLE: WORST_EXCESS}
        case _:
            return StudyState.RUNNING, None, {}


def _constraints(job: SearchJob, scores: dict[str, float]) -> dict[str, float]:
    return {str(bound): bound.excess(scores) for bound in job.constraints if bound.metric in scores}


def _attributes(trial: Trial) -> dict[str, Any]:
    """What the study keeps beside Optuna's own fields: enough to give an ended trial back to the log.

    Optuna refuses intermediate values for several objectives, so the rungs stand here.
    """
    if not trial.state.is_over:
        return {}
    everything = {
        "state": trial.state.value,
        "reason": trial.reason,
        "lost": trial.was_lost,
        "scores": trial.scores,
        "rungs": {str(position): scores for position, scores in trial.rungs.items()},
    }
    return {name: value for name, value in everything.items() if value}


def _intermediate_values(job: SearchJob, trial: Trial) -> dict[int, float]:
    if len(job.objectives) > 1 or not trial.state.is_over:
        return {}
    metric = job.objectives[0].metric
    return {position: scores[metric] for position, scores in trial.rungs.items() if metric in scores}


def _frozen(job: SearchJob, trial: Trial, more_attributes: dict[str, Any] | None = None) -> FrozenTrial:
    """The trial as Optuna would have it after the search so far."""
    state, values, constraints = _outcome(job, trial)
    space = distributions(job)
    began, over = datetime.fromtimestamp(trial.created_s), trial.ended_s  # noqa: DTZ006 (Optuna's times are local)
    frozen = optuna.trial.create_trial(
        state=state,
        values=values,
        params=dict(trial.settings),
        distributions={name: space[name] for name in trial.settings},
        user_attrs=_attributes(trial) | (more_attributes or {}),
        intermediate_values=_intermediate_values(job, trial),
        constraints=constraints,
    )
    frozen.datetime_start = began
    if state.is_finished() and over is not None:
        frozen.datetime_complete = datetime.fromtimestamp(over)  # noqa: DTZ006
    return frozen


# ---------------------------------------------------------------------------- agreement


def reconcile(log: TrialLog, study: SearchStudy) -> None:
    """Make the study's history equal to the log's, and give back to the log what only the study still knows.

    A study that contradicts the log is written anew.
    """
    told = study.trials()
    for number in range(max(len(told), len(log.trials))):
        if number >= len(told):
            study.optuna.add_trial(_frozen(study.job, log.trials[number]))
            continue
        if number not in log.trials.by_number:
            if not told[number].state.is_finished() and not _is_whole(study.job, told[number]):
                study.has_half_drawn = True
                return
            log.record(asked(number, dict(told[number].params)))
        trial = log.trials[number]
        if not trial.state.is_over and told[number].state.is_finished():
            _restore_ending(log, trial, told[number])
        if _contradict(study.job, trial, told[number]):
            logger.warning("the study says other things of trial %d than the log: it is written anew", number)
            study.write_anew(log.trials)
            return
        if trial.state.is_over and not told[number].state.is_finished():
            study.tell(trial)


def _is_whole(job: SearchJob, told: FrozenTrial) -> bool:
    settings = dict(told.params)
    return settings.keys() == {name for name, axis in in_order(job.space) if is_active(axis, settings)}


def _restore_ending(log: TrialLog, trial: Trial, told: FrozenTrial) -> None:
    attributes = told.user_attrs
    for position, scores in attributes.get("rungs", {}).items():
        if int(position) not in trial.rungs:
            log.record(scored(trial.number, int(position), scores))
    log.record(
        ended(
            trial.number,
            TrialState(attributes.get("state", TrialState.FAILED.value)),
            scores=attributes.get("scores"),
            reason=attributes.get("reason", ""),
            lost=attributes.get("lost", False),
        )
    )


def _contradict(job: SearchJob, trial: Trial, told: FrozenTrial) -> bool:
    if trial.parent is None and told.params != trial.settings:
        return True
    if not told.state.is_finished():
        return False
    state, values, _ = _outcome(job, trial)
    return told.state != state or told.values != values or told.user_attrs.get("state") != trial.state.value


# ---------------------------------------------------------------------------- the journal


class _Journal(BaseJournalBackend):
    """Optuna's journal file for its one writer, the process that holds the search.

    JournalFileBackend locks, syncs and reads back the file at every operation, and a line that was cut off by a kill
    makes it useless. Here a damaged end is set aside, and what it said comes from the log.
    """

    def __init__(self, file: Location) -> None:
        self._remote = None if file.is_local else file
        self._path = file.local_path if file.is_local else Path(tempfile.mkdtemp(prefix="vaegen-study-")) / file.name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._remote is not None and self._remote.exists():
            self._path.write_bytes(self._remote.read_bytes())
        self._unread = _sound_lines(self._path)
        self._num_read = 0
        self._stream = self._path.open("ab")
        self._uploaded_bytes = 0
        self._closing = threading.Event()
        if self._remote is not None:
            self._uploader = threading.Thread(target=self._upload_now_and_then, name="study-upload", daemon=True)
            self._uploader.start()

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        del self._unread[: log_number_from - self._num_read]
        self._num_read = log_number_from
        return list(self._unread)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        for entry in logs:
            line = json.dumps(entry, separators=(",", ":"))
            self._stream.write(f"{line}\n".encode())
            self._unread.append(json.loads(line))

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()
        if self._remote is not None:
            self._closing.set()
            self._uploader.join()
            self._upload()

    def _upload_now_and_then(self) -> None:
        while not self._closing.wait(SECONDS_BETWEEN_UPLOADS):
            try:
                self._upload()
            except Exception as error:  # noqa: BLE001 (a copy that is old; the log has all)
                logger.warning("the copy of the study stays behind: %s", error)

    def _upload(self) -> None:
        content = self._path.read_bytes()
        if self._remote is not None and len(content) > self._uploaded_bytes:
            self._remote.write_bytes(content)
            self._uploaded_bytes = len(content)


def _sound_lines(path: Path) -> list[dict[str, Any]]:
    """The operations in the journal up to its first damage; what follows is set aside."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    operations: list[dict[str, Any]] = []
    for line in lines:
        try:
            operation = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            operation = None
        if not isinstance(operation, dict) or "op_code" not in operation:
            logger.warning("%s: line %d is damaged; the study goes on from the log", path, len(operations) + 1)
            path.with_name(f"{path.name}.damaged").write_bytes(b"".join(lines))
            path.write_bytes(b"".join(lines[: len(operations)]))
            break
        operations.append(operation)
    return operations
