"""Preparation as a whole: files of molecules -> a folder of shards with its manifest and its ledger.

Every step writes files that appear whole, under ``.work`` in the folder until the manifest stands; a job that was
stopped finds them there and goes on. `mmsa_shards.catalog` and `mmsa_shards.build` say what the steps do.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec

from mmsa_shards.atomic import write_atomically
from mmsa_shards.build import ShardDone, ShardPlan, build_block, deal, pack, plan_shards
from mmsa_shards.catalog import ChunkCounts, catalog_chunk, chunk_counts, chunk_rejects, chunks_of, skeletons
from mmsa_shards.cluster import Pool, ray_pool
from mmsa_shards.errors import PrepareError
from mmsa_shards.manifest import MANIFEST_NAME, Ledger, Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.read import read_records
from mmsa_shards.rejects import write_rejects
from mmsa_shards.schema import SCHEMA_VERSION
