"""Reports on a run or a folder of shards: an HTML page, a contact sheet of molecules, tables of statistics.

Importing this package loads neither Bokeh nor UMAP; `write_report` does.
"""

from mmsa_dist.report.contact_sheet import contact_sheet
from mmsa_dist.report.page import write_report
from mmsa_dist.report.shard_statistics import ShardStatistics, inspect_shards
from mmsa_dist.report.shard_tables import render_inspection

__all__ = ["ShardStatistics", "contact_sheet", "inspect_shards", "render_inspection", "write_report"]
