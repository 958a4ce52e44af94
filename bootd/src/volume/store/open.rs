//! Opening volumes, and making and naming the files of their layers.

use std::io;
use std::sync::{Arc, Weak};

use croft_proto::VolumeId;

use super::{LayerFile, Live, NEXT, Shard, VolumeStore, layer_file, lock};
use crate::volume::Volume;
use crate::volume::backing::{Backing, Disk};
use crate::volume::catalog::VolumeRecord;
use crate::volume::error::VolumeError;
use crate::volume::format::{PAGE, Superblock, block_at};
use crate::volume::image::ImageVolume;
use crate::volume::layer::{Base, Layer, Opening};
use crate::volume::map::BLOCK;
use crate::volume::names::VolumeKind;

impl<D: Disk> VolumeStore<D> {
    pub(super) fn opened(
        &self,
        shard: &mut Shard<D>,
        id: &VolumeId,
    ) -> Result<Live<D>, VolumeError> {
        if let Some(live) = shard.get(id) {
            return Ok(live.clone());
        }
        let record = self.record(id)?;
        let disk = record.image.map(|version| self.images.open_disk(version)).transpose()?;
        let live = match (record.kind, disk) {
            (VolumeKind::SharedReadOnly, Some(disk)) => {
                let (name, identity) = (id.to_string(), record.identity);
                let volume = Arc::new(ImageVolume { name, identity, size: record.size, disk });
                Live { volume, layer: None }
            }
            (_, disk) => {
                let base = disk.map(|disk| disk as Arc<dyn Base>);
                let layer = Arc::new(self.open_layer(id, &record, base)?);
                Live { volume: Arc::clone(&layer) as Arc<dyn Volume>, layer: Some(layer) }
            }
        };
        shard.insert(id.clone(), live.clone());
        Ok(live)
    }

    fn open_layer(
        &self,
        id: &VolumeId,
        record: &VolumeRecord,
        base: Option<Arc<dyn Base>>,
    ) -> Result<Layer<LayerFile<D>>, VolumeError> {
        let (chain, store) = self.catalog.look(|state| {
            let begun = |n: &u64| state.layers.get(n).is_some_and(|layer| layer.begun);
            let chain = state.chain(record.layer);
            (chain.iter().map(|n| (*n, begun(n))).collect::<Vec<_>>(), state.store)
        });
        let fail = |operation, layer| {
            let path = self.path.join(layer_file(layer));
            move |source| VolumeError::Store { operation, path, source }
        };
        let mut below = Vec::new();
        for (layer, begun) in &chain[..chain.len() - 1] {
            // In one that was frozen without ever having been written there is nothing to find.
            if *begun {
                let file = self.frozen(*layer).map_err(fail("opening", *layer))?;
                below.push((*layer, file));
            }
        }
        let (layer, begun) = (record.layer, chain.last().is_some_and(|(_, begun)| *begun));
        let blocks = record.size / BLOCK;
        let found = match self.disk.open(&layer_file(layer)) {
            Ok(file) if begun => Some(file),
            Ok(file) => {
                // No flush has covered anything in it, so it may be whatever a crash left.
                let mut pages = vec![0; 2 * PAGE];
                file.sync().and_then(|()| file.forget()).map_err(fail("syncing", layer))?;
                file.extend(block_at(blocks)).map_err(fail("extending", layer))?;
                file.read_at(0, &mut pages).map_err(fail("reading", layer))?;
                let head = Superblock::newest(&pages);
                head.filter(|head| head.store == store && head.layer == layer).map(|_| file)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !begun => None,
            Err(error) => return Err(fail("opening", layer)(error)),
        };
        let fresh = found.is_none();
        let file = match found {
            Some(file) => self.layer_file(layer, begun, file),
            None => self.fresh_file(layer, store, record.size)?,
        };
        Layer::open(Opening {
            name: id.to_string(),
            identity: record.identity,
            size: record.size,
            base,
            below,
            layer,
            file: Arc::new(file),
            fresh,
            store,
            usage: self.usage(layer, record.farm.clone()),
            throttle: lock(&self.throttles).of(id, record.farm.as_ref()),
            log_use: self.log_use,
        })
    }

    fn layer_file(&self, number: u64, begun: bool, file: D::File) -> LayerFile<D> {
        LayerFile::new(file, number, begun, Arc::clone(&self.disk), Arc::clone(&self.catalog))
    }

    /// The file of a new layer with its superblock; nothing of it is durable yet.
    fn fresh_file(
        &self,
        number: u64,
        store: [u8; 16],
        size: u64,
    ) -> Result<LayerFile<D>, VolumeError> {
        let make = || {
            let file = self.disk.create(&layer_file(number))?;
            Layer::format(&file, &Superblock::fresh(store, number, size / BLOCK), size)?;
            Ok(self.layer_file(number, false, file))
        };
        make().map_err(|source| VolumeError::Store {
            operation: "making",
            path: self.path.join(layer_file(number)),
            source,
        })
    }

    /// A file for the layer that a snapshot will need, whose number is not known yet.
    pub(super) fn next_file(&self, id: &VolumeId, size: u64) -> Result<D::File, VolumeError> {
        let name = format!("{id}{NEXT}");
        let make = || {
            let file = self.disk.create(&name)?;
            Layer::format(&file, &Superblock::fresh([0; 16], 0, size / BLOCK), size)?;
            Ok(file)
        };
        make().map_err(|source| VolumeError::Store {
            operation: "making",
            path: self.path.join(&name),
            source,
        })
    }

    /// Gives that file its number. Needs no space on the disk.
    pub(super) fn name_file(
        &self,
        id: &VolumeId,
        file: D::File,
        number: u64,
        size: u64,
    ) -> Result<(LayerFile<D>, Superblock), VolumeError> {
        let store = self.catalog.look(|state| state.store);
        let head = Superblock::fresh(store, number, size / BLOCK);
        let name = || {
            file.write_at(Superblock::slot(head.sequence), &head.encode())?;
            self.disk.rename(&format!("{id}{NEXT}"), &layer_file(number))
        };
        name().map_err(|source| VolumeError::Store {
            operation: "naming",
            path: self.path.join(layer_file(number)),
            source,
        })?;
        Ok((self.layer_file(number, false, file), head))
    }

    /// The file of a frozen layer.
    fn frozen(&self, number: u64) -> io::Result<Arc<LayerFile<D>>> {
        let mut frozen = lock(&self.frozen);
        if let Some(file) = frozen.get(&number).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = self.disk.open(&layer_file(number))?;
        let file = Arc::new(self.layer_file(number, true, file));
        frozen.insert(number, Arc::downgrade(&file));
        Ok(file)
    }
}
