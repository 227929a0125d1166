"""Evaluation on labelled molecules: named tasks, named splits, baselines under identical code, spread over seeds."""

from mmsa_dist.evaluate.methods import Method
from mmsa_dist.evaluate.moleculenet import TASKS, Task, TaskError
from mmsa_dist.evaluate.results import Results
from mmsa_dist.evaluate.run import run_evaluation
from mmsa_dist.evaluate.scores import Score
from mmsa_dist.evaluate.split_files import SplitError, choose_split, load_split
from mmsa_dist.evaluate.splits import Split, SplitName, make_split
from mmsa_dist.evaluate.tasks import TaskData, load_csv, load_task

__all__ = [
    "TASKS",
    "Method",
    "Results",
    "Score",
    "Split",
    "SplitError",
    "SplitName",
    "Task",
    "TaskData",
    "TaskError",
    "choose_split",
    "load_csv",
    "load_split",
    "load_task",
    "make_split",
    "run_evaluation",
]
