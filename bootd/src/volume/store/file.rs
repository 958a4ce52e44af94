//! The file of a layer, which enters itself in the catalog when a flush has first covered it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::volume::backing::{Backing, Disk};
use crate::volume::catalog::Catalog;

/// Name of a layer's file.
pub(crate) fn layer_file(number: u64) -> String {
    format!("{number}.layer")
}

/// The number in such a name.
pub(crate) fn layer_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".layer")?.parse().ok()?;
    (layer_file(number) == name).then_some(number)
}

/// A layer's file.
#[derive(Debug)]
pub(crate) struct LayerFile<D: Disk> {
    file: D::File,
    number: u64,
    begun: AtomicBool,
    disk: Arc<D>,
    catalog: Arc<Catalog<D>>,
}

impl<D: Disk> LayerFile<D> {
    /// Around a file that is open.
    pub fn new(
        file: D::File,
        number: u64,
        begun: bool,
        disk: Arc<D>,
        catalog: Arc<Catalog<D>>,
    ) -> Self {
        Self { file, number, begun: AtomicBool::new(begun), disk, catalog }
    }
}

impl<D: Disk> Backing for LayerFile<D> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, data)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.punch(offset, length)
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn extend(&self, length: u64) -> io::Result<()> {
        self.file.extend(length)
    }

    /// The first time also its name, and then the record that it is to be expected.
    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        if !self.begun.load(Ordering::Acquire) {
            self.disk.sync()?;
            self.catalog.begin(self.number)?;
            self.begun.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn forget(&self) -> io::Result<()> {
        self.file.forget()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_layers_are_read_back_and_no_others() {
        assert_eq!(layer_number(&layer_file(42)), Some(42));
        for other in ["42", "042.layer", "+42.layer", "x.layer", "catalog", "42.layer.new"] {
            assert_eq!(layer_number(other), None, "{other}");
        }
    }
}
