//! What every benchmark of Croft shares: statistics, the report, and programs that are started,
//! pinned to a CPU and ended again.

#![forbid(unsafe_code)]

pub mod process;
pub mod report;
