//! QEMU's image format, as far as it is needed to exchange volumes: read in versions 2 and 3
//! without compression, encryption, backing or external data; written in version 3. The format is
//! QEMU's docs/interop/qcow2.txt; its numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::MAX_SIZE;

const MAGIC: u32 = 0x5146_49fb;
/// Clusters that are written: 64 KiB, QEMU's default.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of an L2 table that is written.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Entries of a refcount block that is written, 16 bits each.
const REFCOUNTS: u64 = CLUSTER / 2;
/// Largest L1 table that is read: what QEMU allows.
const MAX_L1: u64 = 4 << 20;
/// Bits of a table entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// "The only reference": the cluster may be overwritten in place.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Why a file cannot be read as qcow2.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// It does not start as one.
    #[error("it is no qcow2 file")]
    Magic,
    /// It uses something that is not read here.
    #[error("it has {0}: convert it with `qemu-img convert -O qcow2` first")]
    Unsupported(&'static str),
    /// It contradicts itself.
    #[error("it is damaged: {fault} (byte {offset})")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong.
        fault: &'static str,
    },
    /// It cannot be read.
    #[error("it cannot be read at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    size: u64,
    cluster_bits: u32,
    l1_at: u64,
    l1_entries: u64,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(raw)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(raw)
}

impl Header {
    /// Reads the first bytes of a file.
    fn parse(bytes: &[u8; 104]) -> Result<Self, Qcow2Error> {
        let damaged = |offset, fault| Err(Qcow2Error::Damaged { offset, fault });
        if be32(bytes, 0) != MAGIC {
            return Err(Qcow2Error::Magic);
        }
        let version = be32(bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(Qcow2Error::Unsupported("another version than 2 and 3"));
        }
        if be64(bytes, 8) != 0 {
            return Err(Qcow2Error::Unsupported("a backing file"));
        }
        if be32(bytes, 32) != 0 {
            return Err(Qcow2Error::Unsupported("encryption"));
        }
        if version == 3 {
            // Bit 0 says that refcounts may be wrong, and they are not used here.
            let features = be64(bytes, 72);
            for (bit, what) in [
                (1, "a mark that it is corrupt"),
                (2, "an external data file"),
                (3, "another compression"),
                (4, "extended L2 entries"),
            ] {
                if features & 1 << bit != 0 {
                    return Err(Qcow2Error::Unsupported(what));
                }
            }
            if features >> 5 != 0 {
                return Err(Qcow2Error::Unsupported("features of a later time"));
            }
        }
        let (cluster_bits, size) = (be32(bytes, 20), be64(bytes, 24));
        if !(9..=21).contains(&cluster_bits) {
            return damaged(20, "clusters of an impossible size");
        }
        if size == 0 || size > MAX_SIZE {
            return Err(Qcow2Error::Unsupported("a size of zero or more than 64 TiB"));
        }
        let (l1_entries, l1_at) = (u64::from(be32(bytes, 36)), be64(bytes, 40));
        let needed = size.div_ceil(1 << cluster_bits).div_ceil(1 << (cluster_bits - 3));
        if l1_entries < needed || l1_entries > MAX_L1 {
            return damaged(36, "an L1 table that does not fit its size");
        }
        if l1_at == 0 || !l1_at.is_multiple_of(1 << cluster_bits) {
            return damaged(40, "an L1 table at an impossible place");
        }
        Ok(Self { size, cluster_bits, l1_at, l1_entries })
    }
}

/// A qcow2 file, open for reading.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    header: Header,
    l1: Vec<u64>,
    /// The L2 table that was used last, and its number.
    l2: Option<(u64, Vec<u64>)>,
}

fn read(file: &File, offset: u64, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
    file.read_exact_at(buffer, offset).map_err(|source| Qcow2Error::Read { offset, source })
}

fn table(file: &File, at: u64, entries: u64) -> Result<Vec<u64>, Qcow2Error> {
    let mut bytes = vec![0; entries as usize * 8];
    read(file, at, &mut bytes)?;
    Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
}

impl Reader {
    /// Whether a file starts as qcow2 does.
    pub fn knows(file: &File) -> bool {
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, 0).is_ok() && u32::from_be_bytes(magic) == MAGIC
    }

    /// Reads header and L1 table.
    pub fn open(file: File) -> Result<Self, Qcow2Error> {
        let mut bytes = [0; 104];
        // A version 2 header may be all there is.
        read(&file, 0, &mut bytes[..72])?;
        if be32(&bytes, 4) == 3 {
            read(&file, 72, &mut bytes[72..])?;
        }
        let header = Header::parse(&bytes)?;
        let l1 = table(&file, header.l1_at, header.l1_entries)?;
        Ok(Self { file, header, l1, l2: None })
    }

    /// Bytes of the disk in it.
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// Bytes per cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// Fills the buffer from one cluster; `false` if it is zeros.
    pub fn read_cluster(&mut self, number: u64, buffer: &mut [u8]) -> Result<bool, Qcow2Error> {
        let entries = self.cluster() / 8;
        let (which, entry) = (number / entries, number % entries);
        let l2_at = self.l1.get(which as usize).copied().unwrap_or(0) & OFFSET;
        if l2_at == 0 {
            return Ok(false);
        }
        if !l2_at.is_multiple_of(self.cluster()) {
            let offset = self.header.l1_at + which * 8;
            return Err(Qcow2Error::Damaged {
                offset,
                fault: "an L2 table at an impossible place",
            });
        }
        let l2 = match &mut self.l2 {
            Some((known, l2)) if *known == which => l2,
            other => &mut other.insert((which, table(&self.file, l2_at, entries)?)).1,
        };
        let value = l2[entry as usize];
        if value & COMPRESSED != 0 {
            return Err(Qcow2Error::Unsupported("compressed clusters"));
        }
        let zero = value & 1 != 0 || value & OFFSET == 0;
        if zero {
            return Ok(false);
        }
        let at = value & OFFSET;
        if !at.is_multiple_of(self.cluster()) {
            let offset = l2_at + entry * 8;
            return Err(Qcow2Error::Damaged { offset, fault: "a cluster at an impossible place" });
        }
        // The file may end within its last cluster; the rest is zeros.
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], at + done as u64) {
                Ok(0) => {
                    buffer[done..].fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Qcow2Error::Read { offset: at + done as u64, source }),
            }
        }
        Ok(true)
    }
}

/// A qcow2 file that is being written. Clusters come in any order, each once; [`Writer::finish`]
/// writes the tables behind them, and the header last.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    file: &'a File,
    size: u64,
    /// Number of the next cluster of the file.
    next: u64,
    /// L2 tables by number.
    l2: std::collections::BTreeMap<u64, Vec<u64>>,
}

impl<'a> Writer<'a> {
    /// Starts an empty file for a disk of this size.
    pub fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, next: 1, l2: std::collections::BTreeMap::new() }
    }

    /// Bytes per cluster.
    pub fn cluster(&self) -> u64 {
        CLUSTER
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.next * CLUSTER;
        self.file.write_all_at(bytes, at)?;
        self.next += (bytes.len() as u64).div_ceil(CLUSTER);
        Ok(at)
    }

    /// Writes a cluster of the disk; what is missing at its end is zeros.
    pub fn write_cluster(&mut self, number: u64, data: &[u8]) -> io::Result<()> {
        let at = self.put(data)?;
        let table = self.l2.entry(number / L2_ENTRIES);
        table.or_insert_with(|| vec![0; L2_ENTRIES as usize])[(number % L2_ENTRIES) as usize] =
            at | COPIED;
        Ok(())
    }

    /// Writes tables and header; synced when it returns.
    pub fn finish(mut self) -> io::Result<()> {
        let l1_entries = self.size.div_ceil(CLUSTER).div_ceil(L2_ENTRIES);
        let mut l1 = vec![0; l1_entries as usize];
        for (number, table) in std::mem::take(&mut self.l2) {
            l1[number as usize] = self.put(&encode(&table))? | COPIED;
        }
        let l1_at = self.put(&encode(&l1))?;
        // Refcounts cover the clusters that hold them, too.
        let used = self.next;
        let (mut blocks, mut table) = (0, 0);
        while blocks * REFCOUNTS < used + blocks + table {
            blocks += 1;
            table = (blocks * 8).div_ceil(CLUSTER);
        }
        let total = used + blocks + table;
        let mut offsets = Vec::new();
        for block in 0..blocks {
            let counts = (0..REFCOUNTS).map(|n| u16::from(block * REFCOUNTS + n < total));
            let bytes: Vec<u8> = counts.flat_map(u16::to_be_bytes).collect();
            offsets.push(self.put(&bytes)?);
        }
        offsets.resize((table * CLUSTER / 8) as usize, 0);
        let table_at = self.put(&encode(&offsets))?;
        self.file.set_len(total * CLUSTER)?;
        let mut header = [0; 112];
        header[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        header[4..8].copy_from_slice(&3_u32.to_be_bytes());
        header[20..24].copy_from_slice(&CLUSTER_BITS.to_be_bytes());
        header[24..32].copy_from_slice(&self.size.to_be_bytes());
        header[36..40].copy_from_slice(&(l1_entries as u32).to_be_bytes());
        header[40..48].copy_from_slice(&l1_at.to_be_bytes());
        header[48..56].copy_from_slice(&table_at.to_be_bytes());
        header[56..60].copy_from_slice(&(table as u32).to_be_bytes());
        // Refcounts of 1 << 4 bits, and the header's length; an extension of type 0 ends it.
        header[96..100].copy_from_slice(&4_u32.to_be_bytes());
        header[100..104].copy_from_slice(&104_u32.to_be_bytes());
        self.file.sync_all()?;
        self.file.write_all_at(&header, 0)?;
        self.file.sync_all()
    }
}

fn encode(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let file = tempfile::tempfile().expect("file");
        let size = (600 << 20) + 4096;
        let mut writer = Writer::new(&file, size);
        let last = size / CLUSTER;
        writer.write_cluster(8192, &[3; CLUSTER as usize]).expect("written");
        writer.write_cluster(1, &[1; CLUSTER as usize]).expect("written");
        writer.write_cluster(last, &[2; 4096]).expect("written");
        writer.finish().expect("finished");
        let mut reader = Reader::open(file).expect("read");
        assert_eq!((reader.size(), reader.cluster()), (size, CLUSTER));
        let mut data = vec![0; CLUSTER as usize];
        for (number, byte) in [(1, 1), (8192, 3), (last, 2)] {
            assert!(reader.read_cluster(number, &mut data[..4096]).expect("read"));
            assert!(data[..4096].iter().all(|b| *b == byte));
        }
        for number in [0, 2, 8191, 9000] {
            assert!(!reader.read_cluster(number, &mut data).expect("read"));
        }
    }

    fn header() -> [u8; 104] {
        let mut bytes = [0; 104];
        bytes[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&16_u32.to_be_bytes());
        bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        bytes[36..40].copy_from_slice(&2_u32.to_be_bytes());
        bytes[40..48].copy_from_slice(&(3_u64 << 16).to_be_bytes());
        bytes
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let good = Header { size: 1 << 30, cluster_bits: 16, l1_at: 3 << 16, l1_entries: 2 };
        assert_eq!(Header::parse(&header()).expect("good"), good);
        let fault = |at: usize, byte: u8| {
            let mut bytes = header();
            bytes[at] = byte;
            Header::parse(&bytes).expect_err("faulty").to_string()
        };
        assert!(fault(0, 0).contains("no qcow2"));
        assert!(fault(7, 4).contains("version"));
        assert!(fault(15, 1).contains("backing"));
        assert!(fault(35, 1).contains("encryption"));
        assert!(fault(79, 2).contains("corrupt"));
        assert!(fault(79, 4).contains("external"));
        assert!(fault(79, 0x40).contains("later"));
        assert!(fault(23, 40).contains("byte 20"));
        assert!(fault(39, 0).contains("L1"));
        assert!(fault(47, 1).contains("byte 40"));
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_panic(
            at in 4_usize..104, byte: u8, rest in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let mut bytes = header();
            bytes[20..24].copy_from_slice(&9_u32.to_be_bytes());
            bytes[24..32].copy_from_slice(&4096_u64.to_be_bytes());
            bytes[40..48].copy_from_slice(&512_u64.to_be_bytes());
            bytes[at] = byte;
            let mut file = tempfile::tempfile().expect("file");
            file.write_all(&bytes).expect("written");
            file.write_all(&rest).expect("written");
            if let Ok(mut reader) = Reader::open(file) {
                let mut data = vec![0; 512];
                for number in 0..8 {
                    data.fill(0xa5);
                    let there = reader.read_cluster(number, &mut data);
                    // Nothing of a cluster that is not there gets into the buffer.
                    prop_assert!(!matches!(there, Ok(false)) || data.iter().all(|b| *b == 0xa5));
                }
            }
        }
    }
}
