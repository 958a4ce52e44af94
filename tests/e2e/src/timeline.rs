//! The timeline that a scenario prints.

use std::fmt::Display;
use std::time::Instant;

/// Prints each step with the seconds since the scenario began.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    start: Instant,
}

impl Timeline {
    /// A timeline that begins now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Prints one step.
    pub fn step(&self, what: impl Display) {
        println!("[{:7.1} s] {what}", self.start.elapsed().as_secs_f64());
    }

    /// Prints a detail below the last step.
    pub fn detail(&self, what: impl Display) {
        println!("[{:7.1} s]   {what}", self.start.elapsed().as_secs_f64());
    }
}
