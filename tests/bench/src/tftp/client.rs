//! A TFTP client that asks for large blocks and, if it is told to, for windows (RFC 1350, 2347, 2348,
//! 7440). Many run in one thread.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Bytes of a block: what an Ethernet frame holds.
pub const BLOCK: usize = 1468;
/// What is not answered by then is asked again, so many times in a transfer.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u32 = 10;

/// A file that has come.
#[derive(Debug)]
pub struct Fetched {
    pub bytes: Vec<u8>,
    /// From the request to the last block.
    pub time: Duration,
    /// Datagrams that were sent once more because nothing came.
    pub again: u32,
}

/// Fetches a file; `window` is the number of blocks for each acknowledgement.
///
/// # Errors
/// The server refuses, does not take block size or window, or is silent.
pub async fn fetch(
    own: Ipv4Addr,
    server: SocketAddr,
    name: &str,
    window: u16,
) -> anyhow::Result<Fetched> {
    let start = Instant::now();
    let socket = UdpSocket::bind((own, 0)).await.with_context(|| format!("binding {own}"))?;
    let mut assembly = Assembly { window, ..Assembly::default() };
    let mut last = request(name, window);
    let mut peer = server;
    let mut again = 0;
    let mut packet = [0; 4 + BLOCK + 1];
    socket.send_to(&last, peer).await?;
    loop {
        let Ok(received) = timeout(PATIENCE, socket.recv_from(&mut packet)).await else {
            again += 1;
            ensure!(again <= TRIES, "{name} for {own}: no answer after block {}", assembly.blocks);
            socket.send_to(&last, peer).await?;
            continue;
        };
        let (length, from) = received.context("receiving a block")?;
        if peer == server {
            // Each transfer has a port of its own.
            peer = from;
        } else if peer != from {
            continue;
        }
        let step = match packet[..length] {
            [0, 3, high, low, ref data @ ..] => {
                assembly.data(u16::from_be_bytes([high, low]), data)?
            }
            [0, 6, ref options @ ..] => {
                check_options(options, window)?;
                Step::Acknowledge(0)
            }
            [0, 5, _, code, ref text @ ..] => {
                bail!("{name} for {own}: error {code}: {}", String::from_utf8_lossy(text))
            }
            _ => bail!("{name} for {own}: no packet of a server, {length} bytes"),
        };
        let (Step::Acknowledge(block) | Step::End(block)) = step else { continue };
        let [high, low] = block.to_be_bytes();
        last = vec![0, 4, high, low];
        socket.send_to(&last, peer).await?;
        if matches!(step, Step::End(_)) {
            return Ok(Fetched { bytes: assembly.file, time: start.elapsed(), again });
        }
    }
}

fn request(name: &str, window: u16) -> Vec<u8> {
    let mut request = format!("\0\x01{name}\0octet\0blksize\0{BLOCK}\0");
    if window > 1 {
        request += &format!("windowsize\0{window}\0");
    }
    request.into_bytes()
}

/// What was asked for must be what is measured.
fn check_options(options: &[u8], window: u16) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(options).to_ascii_lowercase();
    let words: Vec<&str> = text.split_terminator('\0').collect();
    let value =
        |name: &str| words.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1));
    let is = |name, wanted: usize| value(name).is_some_and(|value| *value == wanted.to_string());
    ensure!(is("blksize", BLOCK), "the server takes no blocks of {BLOCK} bytes: {words:?}");
    ensure!(window == 1 || is("windowsize", window.into()), "no window of {window}: {words:?}");
    Ok(())
}

#[derive(Debug, PartialEq)]
enum Step {
    Wait,
    Acknowledge(u16),
    End(u16),
}

/// The blocks so far.
#[derive(Debug, Default)]
struct Assembly {
    file: Vec<u8>,
    window: u16,
    blocks: usize,
    /// Blocks since the last acknowledgement.
    open: u16,
    /// Has told that a block is missing, and waits for it.
    told: bool,
}

impl Assembly {
    fn data(&mut self, number: u16, data: &[u8]) -> anyhow::Result<Step> {
        ensure!(data.len() <= BLOCK, "a block of {} bytes", data.len());
        // Numbers begin again at 0 in a file of more than 65,535 blocks.
        let before = self.blocks as u16;
        let ahead = number.wrapping_sub(before.wrapping_add(1));
        if ahead > 0 {
            // A window that misses a block is asked for from there, once. Those that came twice are
            // passed over: an answer to each would double all that follow.
            if ahead >= self.window || self.told {
                return Ok(Step::Wait);
            }
            (self.told, self.open) = (true, 0);
            return Ok(Step::Acknowledge(before));
        }
        self.file.extend_from_slice(data);
        self.blocks += 1;
        self.open += 1;
        self.told = false;
        if data.len() < BLOCK {
            return Ok(Step::End(number));
        }
        if self.open < self.window {
            return Ok(Step::Wait);
        }
        self.open = 0;
        Ok(Step::Acknowledge(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_acknowledged_whole_and_asked_for_from_a_gap_once() {
        let mut assembly = Assembly { window: 4, ..Assembly::default() };
        let full = [7; BLOCK];
        let mut step = |number, data: &[u8]| assembly.data(number, data).expect("a block");
        assert_eq!(
            [1, 2, 3].map(|number| step(number, &full)),
            [Step::Wait, Step::Wait, Step::Wait]
        );
        assert_eq!(step(4, &full), Step::Acknowledge(4));
        // 5 is lost.
        assert_eq!(step(6, &full), Step::Acknowledge(4));
        assert_eq!(
            [7, 8, 4].map(|number| step(number, &full)),
            [Step::Wait, Step::Wait, Step::Wait]
        );
        assert_eq!(step(5, &full), Step::Wait);
        assert_eq!(step(6, &[1, 2]), Step::End(6));
        assert_eq!(assembly.file.len(), 5 * BLOCK + 2);
        assert!(assembly.data(7, &[0; BLOCK + 1]).is_err());
    }

    #[test]
    fn a_server_that_does_not_take_the_options_is_not_measured() {
        assert_eq!(request("f", 1), b"\0\x01f\0octet\0blksize\x001468\0");
        assert_eq!(request("f", 16), b"\0\x01f\0octet\0blksize\x001468\0windowsize\x0016\0");
        assert!(check_options(b"blksize\x001468\0", 1).is_ok());
        assert!(check_options(b"windowsize\x0016\0blksize\x001468\0", 16).is_ok());
        assert!(check_options(b"blksize\x001468\0", 16).is_err());
        assert!(check_options(b"blksize\x00512\0windowsize\x0016\0", 16).is_err());
    }
}
