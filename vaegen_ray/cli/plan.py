"""`vaegen plan`."""

from rich.console import Console
from rich.table import Table

from vaegen_ray.cli.train import JobFile, Overrides
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import dump_job, load_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.search import Choice, SearchJob
from vaegen_ray.errors import JobError
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.open import is_trial_of_a_search, load_trial
from vaegen_ray.search.plan import KL_WEIGHT, largest_useful_kl_weight, plan_search


def plan(job_file: JobFile, overrides: Overrides = None) -> None:
    """Show the resolved job, its sizes and costs, and what it would ask of a cluster; start nothing."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if is_trial_of_a_search(job_file):
        _plan_training(load_trial(job_file, overrides or []), console)
        return
    job = load_job(job_file, overrides or [])
    if isinstance(job, SearchJob):
        _plan_search(job, console)
    elif isinstance(job, TrainJob):
        _plan_training(job, console)
    else:
        raise JobError(f"{job_file}: kind: must be 'train' or 'search' for this command, got '{job.kind}'")


def _plan_search(job: SearchJob, console: Console) -> None:
    from vaegen_ray.training.plan import plan as plan_of

    console.print(dump_job(job), end="")
    plan, costs = plan_search(job), plan_of(job.base)
    table = Table("quantity", "value", title=f"plan of the search '{job.name}'")
    table.add_row("trials", f"{plan.trials:,}, of them {len(job.points)} given by `points`")
    table.add_row("axes", ", ".join(job.space))
    table.add_row("a trial", f"{plan.images_per_trial:,} images, {plan.rungs} evaluations at which it may be stopped")
    table.add_row("all trials, at most", f"{plan.most_images:,} images")
    table.add_row("", _flops(costs.step_flops_per_image * plan.most_images))
    if plan.shared_images:
        part = plan.saved_images / (plan.trials * plan.images_per_trial)
        times = "once" if plan.beginnings == 1 else f"at most {plan.beginnings} times"
        saving = f"the first {plan.shared_images:,} images of the trials are trained {times}: saves {part:.0%}"
    else:
        saving = "none for sure: trials may differ from the first step, or the adversarial term acts from there"
    table.add_row("common phase", saving)
    console.print(table)
    _advise_on_kl_weight(job, console)
    console.print(f"asks of the cluster for each trial: {_request(job.base, 'in the process of a Tune trial')}")
    console.print(f"writes to: {SearchDirectory.of(job).root}")


def _advise_on_kl_weight(job: SearchJob, console: Console) -> None:
    axis = job.space.get(KL_WEIGHT)
    if axis is None or isinstance(axis, Choice):
        return
    from vaegen_ray.data.plain_parquet import open_dataset

    eigenvalue = open_dataset(job.base.data, job.base.model).metadata.largest_eigenvalue
    bound = largest_useful_kl_weight(job, eigenvalue)
    if bound is None:
        return
    advice = f"; the axis reaches {axis.high:g}: high: {bound:.3g} would lose nothing" if axis.high > bound else ""
    console.print(
        f"{KL_WEIGHT}: above {bound:.3g} the code of a linear VAE of these images would carry nothing (largest "
        f"eigenvalue of their covariance {eigenvalue:.4g}){advice}"
    )


def _plan_training(job: TrainJob, console: Console) -> None:
    from vaegen_ray.training.plan import plan as plan_of

    console.print(dump_job(job), end="")
    costs = plan_of(job)
    table = Table("quantity", "value", title=f"plan of '{job.name}'")
    for network, parameters in costs.parameters.items():
        table.add_row(f"parameters of the {network}", f"{parameters:,}")
    table.add_row("forward pass of an image", _flops(costs.forward_flops_per_image))
    table.add_row("training step, for each image", _flops(costs.step_flops_per_image))
    table.add_row("whole run", _flops(costs.step_flops_per_image * costs.total_steps * job.training.images_per_step))
    table.add_row("activations, for each image", _bytes(costs.activation_bytes_per_image))
    table.add_row("state, on every worker", _bytes(costs.state_bytes))
    table.add_row("steps", f"{costs.total_steps:,} of {job.training.images_per_step:,} images")
    kept = min(job.training.keep_checkpoints, costs.num_checkpoints)
    table.add_row("checkpoints", f"{costs.num_checkpoints} of {_bytes(costs.checkpoint_bytes)}, the newest {kept} kept")
    console.print(table)
    console.print(f"asks of the machine or cluster: {_request(job)}")
    console.print(f"writes to: {RunDirectory.of(job).root}")


def _request(job: TrainJob, process: str = "in the process of the command") -> str:
    resources = job.resources
    counts = job.worker_counts
    workers = " or ".join(str(count) for count in reversed(counts))
    gpus = "1 GPU where there are any" if resources.gpus_per_worker is None else f"{resources.gpus_per_worker:g} GPU"
    portions = f"{job.training.images_per_step // counts[0] // job.portions(counts[0]):,} images at a time"
    where = "on Ray Train" if resources.needs_ray else process
    return f"{workers} worker(s) {where}, each with {resources.cpus_per_worker:g} CPU and {gpus}, {portions}"


def _flops(count: float) -> str:
    return _scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"), 1000)


def _bytes(count: float) -> str:
    return _scaled(count, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)


def _scaled(count: float, units: tuple[str, ...], base: int) -> str:
    for unit in units[:-1]:
        if count < base:
            return f"{count:.3g} {unit}"
        count /= base
    return f"{count:.3g} {units[-1]}"
