//! Standard output, in the form that was asked for.

use std::io::{self, Write};

use serde::Serialize;

use crate::args::Output;
use crate::fault::Fault;

/// Prints an answer: as JSON, or as what `table` makes of it.
///
/// # Errors
/// Standard output is closed.
pub fn print<T: Serialize>(
    output: Output,
    answer: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Fault> {
    let text = match output {
        Output::Table => table(answer),
        Output::Json => serde_json::to_string_pretty(answer).map_err(io::Error::from)? + "\n",
    };
    write(&text)
}

/// Prints one of a stream of answers, on one line.
///
/// # Errors
/// Standard output is closed.
pub fn print_line<T: Serialize>(
    output: Output,
    answer: &T,
    line: impl FnOnce(&T) -> String,
) -> Result<(), Fault> {
    let text = match output {
        Output::Table => line(answer),
        Output::Json => serde_json::to_string(answer).map_err(io::Error::from)?,
    };
    write(&(text + "\n"))
}

fn write(text: &str) -> Result<(), Fault> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
