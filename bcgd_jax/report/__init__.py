"""What a run did, out of the files in its workdir: progress while it runs, a report at its end."""

from bcgd_jax.report.files import read_json as read_json
from bcgd_jax.report.files import write_json as write_json
from bcgd_jax.report.progress import Progress as Progress
from bcgd_jax.report.progress import progress as progress
from bcgd_jax.report.records import read_metrics as read_metrics
from bcgd_jax.report.report import read_summary as read_summary
from bcgd_jax.report.report import write_report as write_report
from bcgd_jax.report.tables import Table as Table
from bcgd_jax.report.tables import layer_table as layer_table
from bcgd_jax.report.tables import print_table as print_table
from bcgd_jax.report.tables import summary_table as summary_table
