//! The agent against collectors, balancers and machines of the tests' own. One program, so that what
//! they share is compiled once.

mod attach;
mod balancer;
mod footprint;
mod machine;
mod support;
