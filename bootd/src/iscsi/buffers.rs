//! Buffers that busy sessions share. A session that waits and has nothing half done holds none, so
//! that a thousand idle sessions cost what their state takes; one that is busy finds a buffer whose
//! pages are there already.

use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;

/// Least room of a buffer for receiving: bytes.
pub(super) const ROOM: usize = 64 << 10;
/// Bytes that wait in the pool at most, all buffers together.
const KEPT: usize = 16 << 20;

/// The pool.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<BytesMut>,
    bytes: usize,
}

impl Buffers {
    /// An empty buffer with at least [`ROOM`].
    pub fn take(&self) -> BytesMut {
        // The list and its sum are changed together, and nothing panics between.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.buffers.pop() {
            Some(buffer) => {
                kept.bytes -= buffer.capacity();
                buffer
            }
            None => BytesMut::with_capacity(ROOM),
        }
    }

    /// Takes back a buffer whose content is not needed any more. One that is too small or too many
    /// is freed.
    pub fn give(&self, mut buffer: BytesMut) {
        buffer.clear();
        // What was sent from its front is room again, and counts below; `false` if there is none.
        let _ = buffer.try_reclaim(buffer.capacity() + 1);
        if buffer.capacity() < ROOM {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + buffer.capacity() <= KEPT {
            kept.bytes += buffer.capacity();
            kept.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn a_buffer_comes_back_whole_and_small_or_superfluous_ones_do_not() {
        let pool = Buffers::default();
        let mut first = pool.take();
        first.resize(300 << 10, 7);
        let size = first.capacity();
        first.advance(200 << 10);
        pool.give(first);
        pool.give(BytesMut::with_capacity(100));
        let again = pool.take();
        assert!(again.is_empty() && again.capacity() >= size, "{} {size}", again.capacity());
        for _ in 0..3 {
            pool.give(BytesMut::with_capacity(KEPT / 2));
        }
        let kept = pool.0.lock().expect("not poisoned");
        assert_eq!(kept.buffers.len(), 2);
        assert_eq!(kept.bytes, KEPT);
    }
}
