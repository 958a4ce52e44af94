//! Web servers that can be told to fail in the ways that machines do, and a client that never
//! pauses and counts every failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Takes the request and resets the connection.
    Resetting,
    /// Takes the request and never answers, as a machine that lost its power.
    Silent,
}

/// A web server of one member.
pub struct Web {
    pub mood: watch::Sender<Mood>,
    /// Lets the answers to `/slow` out.
    pub slow: Arc<Notify>,
    tasks: JoinSet<()>,
}

impl Web {
    pub async fn start(address: SocketAddr, name: &'static str) -> Self {
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let (mood_in, mood) = watch::channel(Mood::Well);
        let slow = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let released = Arc::clone(&slow);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                connections.spawn(answer(stream, name, mood.clone(), Arc::clone(&released)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { mood: mood_in, slow, tasks }
    }

    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn answer(mut stream: TcpStream, name: &str, mood: watch::Receiver<Mood>, slow: Arc<Notify>) {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    let now = *mood.borrow();
    match now {
        Mood::Well => {}
        Mood::Resetting => return stream.set_zero_linger().expect("a socket option"),
        Mood::Silent => return std::future::pending().await,
    }
    if request.starts_with(b"GET /slow") {
        slow.notified().await;
    }
    let length = name.len();
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}");
    // A client that has gone does not matter here; the client counts its failures itself.
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// One GET through the balancer: the name of the member that answered.
pub async fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(Duration::from_secs(15), asked).await.map_err(|_| "15 s".to_owned())?;
    let answer = answer.map_err(|e| e.to_string())?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(answer.lines().next().unwrap_or("an empty answer").to_owned()),
    }
}

#[derive(Debug, Default, Clone)]
pub struct Count {
    pub answers: BTreeMap<String, u64>,
    pub failures: Vec<String>,
    pub slowest: Duration,
}

/// Clients that ask without pause until they are dropped.
pub struct Clients {
    count: Arc<Mutex<Count>>,
    _tasks: JoinSet<()>,
}

impl Clients {
    pub fn start(address: SocketAddr, number: usize) -> Self {
        let count = Arc::new(Mutex::new(Count::default()));
        let mut tasks = JoinSet::new();
        for _ in 0..number {
            let count = Arc::clone(&count);
            tasks.spawn(async move {
                loop {
                    let started = Instant::now();
                    let answer = get(address, "/whoami").await;
                    {
                        let mut count = count.lock().expect("no panic while counting");
                        count.slowest = count.slowest.max(started.elapsed());
                        match answer {
                            Ok(name) => *count.answers.entry(name).or_default() += 1,
                            Err(failure) => count.failures.push(failure),
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        Self { count, _tasks: tasks }
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Count {
        std::mem::take(&mut self.count.lock().expect("no panic while counting"))
    }

    /// Waits until exactly these members answer: what others answered meanwhile is forgotten, and
    /// a failure at any time is a failure of the test.
    pub async fn until_answered_by(&self, members: &[&str]) {
        let answered = async {
            loop {
                let from = self.take();
                assert!(from.failures.is_empty(), "{:?}", from.failures);
                // Ten answers a member: none of them comes by chance.
                let mut seen = Count::default();
                while seen.answers.values().sum::<u64>() < 10 * members.len() as u64 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let more = self.take();
                    assert!(more.failures.is_empty(), "{:?}", more.failures);
                    for (name, number) in more.answers {
                        *seen.answers.entry(name).or_default() += number;
                    }
                }
                if seen.answers.keys().map(String::as_str).eq(members.iter().copied()) {
                    return;
                }
            }
        };
        timeout(super::DEADLINE, answered)
            .await
            .unwrap_or_else(|_| panic!("not answered by exactly {members:?} in time"));
    }
}
