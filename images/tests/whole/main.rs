//! Whole images: built, and booted. One program, so that what the tests share is compiled once.

mod boot;
mod build;
mod common;
