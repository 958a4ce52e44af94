//! bootd without control: one file says which machine becomes what.
//!
//! The file is read into a [`plan::Plan`]. A DHCP request is answered by the [`Clerk`]: it recognises
//! the machine, finds the rule that decides about it ([`rules`]), gives it an address ([`leases`]), and
//! has the [`registrar`] write the assignment down as control would have: as a new generation of the
//! desired state. From there on a boot goes the same way as under control.

mod clerk;
mod explain;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod identity;
mod leases;
mod ledger;
pub(crate) mod plan;
pub(crate) mod probe;
mod read;
mod registrar;
mod rules;
mod state;
mod tables;
mod upkeep;

pub(crate) use clerk::{Clerk, ClerkParts};
pub(crate) use explain::{Question, explain};
pub(crate) use ledger::{Ledger, LedgerError};
pub(crate) use plan::Plan;
pub(crate) use read::read;
pub(crate) use registrar::{Registrar, RegistrarError, RegistrarParts};
pub(crate) use rules::Family;
