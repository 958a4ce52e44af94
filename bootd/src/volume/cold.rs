//! Reads that may have to wait for the disk. What the page cache holds is read at once; for the
//! rest the thread steps aside, so that other tasks of bootd's runtime (other sessions, DHCP) go on
//! in another one meanwhile.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Fills the buffer from a file.
///
/// # Errors
/// The disk failed, or the file ends before.
pub(crate) fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    if read_cached(file, offset, buffer)? {
        return Ok(());
    }
    aside(|| file.read_exact_at(buffer, offset))
}

/// Does work that takes long, or waits for the disk. Threads of no runtime, and those of a runtime
/// that has only one, do it as they are.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Reads from the page cache only (RWF_NOWAIT, preadv2(2)): `false` if it does not hold all of it,
/// or the file system cannot tell. The buffer may hold anything then.
fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
    let wanted = buffer.len();
    match preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(read == wanted),
        Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_are_read_up_to_their_end_and_not_beyond() {
        let mut file = tempfile::tempfile().expect("a file");
        let content: Vec<u8> = (0..40_000_u32).map(|n| n as u8).collect();
        file.write_all(&content).expect("written");
        let mut part = [0; 9000];
        read_at(&file, 5000, &mut part).expect("read");
        assert_eq!(part[..], content[5000..14_000]);
        let error = read_at(&file, 39_000, &mut part).expect_err("beyond the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        read_at(&file, 50_000, &mut []).expect("nothing was asked for");
    }

    #[test]
    fn others_go_on_while_the_only_worker_waits() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let runtime = runtime.expect("a runtime");
        let (go_on, wait) = mpsc::channel();
        let waiting = runtime.spawn(async move {
            aside(|| wait.recv_timeout(Duration::from_secs(20)).expect("the other task ran"));
        });
        runtime.spawn(async move { go_on.send(()).expect("somebody waits") });
        runtime.block_on(waiting).expect("no panic");
    }
}
