//! One stream with a ttrpc connection in each direction: a service that is called from the
//! other side, and a caller of the other side's service.
//!
//! Everything ends together: when the stream ends or cannot be understood, calls in hand are
//! dropped and calls under way fail. Dropping what drives it ends it as well.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use accelpool_proto::ttrpc;
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::{
    frame::{Assembler, FRAME_HEADER_LEN, FrameError, FrameHeader, Kind, Message},
    status::{Code, Status},
};

/// The connection on which the runtime calls the plugin.
const PLUGIN_CONNECTION: u32 = 1;
/// The connection on which the plugin calls the runtime.
const RUNTIME_CONNECTION: u32 = 2;

/// A runtime asks for one thing at a time; this many at once is a runtime gone wild.
const REQUESTS_MAX: usize = 64;

/// Messages that wait to be written. Who has more to say waits with it.
const QUEUE_LEN: usize = 64;

/// Which side of the stream this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Role {
    Plugin,
    Runtime,
}

/// A call from the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The service, such as [`crate::PLUGIN_SERVICE`].
    pub service: String,
    /// The method.
    pub method: String,
    /// Its message, encoded.
    pub payload: Vec<u8>,
    /// How long the other side still waits, if it says so.
    pub timeout: Option<Duration>,
}

/// What the other side may call.
pub trait Service: Send + Sync + 'static {
    /// Answers a call with a message, encoded.
    fn call(&self, request: Request) -> impl Future<Output = Result<Vec<u8>, Status>> + Send;
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum Ended {
    #[error("the other side hung up")]
    HungUp,
    #[error("the stream broke")]
    Broken(#[from] io::Error),
    #[error("the other side sent what is not NRI's protocol")]
    Garbage(#[from] FrameError),
}

/// Why a call did not go well.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum CallError {
    #[error(transparent)]
    Refused(#[from] Status),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the connection has ended")]
    Ended,
    #[error("the connection is not read from the other side")]
    Stuck,
    #[error("the answer cannot be decoded")]
    Answer(#[from] prost::DecodeError),
    #[error("the call cannot be sent")]
    TooLong(#[from] FrameError),
}

/// Starts to speak over `stream`. Nothing happens unless the future is polled; it is done when
/// the connection is.
pub fn connect(
    stream: impl AsyncRead + AsyncWrite + Send,
    role: Role,
    service: impl Service,
) -> (Caller, impl Future<Output = Ended> + Send) {
    let (queue, outgoing) = mpsc::channel(QUEUE_LEN);
    let (serves, calls) = match role {
        Role::Plugin => (PLUGIN_CONNECTION, RUNTIME_CONNECTION),
        Role::Runtime => (RUNTIME_CONNECTION, PLUGIN_CONNECTION),
    };
    let pending = Arc::new(Mutex::new(Pending::default()));
    let caller = Caller { connection: calls, queue: queue.clone(), pending: Arc::clone(&pending) };
    let incoming = Incoming {
        service: Arc::new(service),
        serves,
        calls,
        queue,
        pending: Arc::clone(&pending),
        last_stream: 0,
        requests: JoinSet::new(),
    };
    let driven = async move {
        let (reading, writing) = tokio::io::split(stream);
        let ended = tokio::select! {
            ended = incoming.run(reading) => ended,
            ended = write_all(writing, outgoing) => ended,
        };
        lock(&pending).end();
        ended
    };
    (caller, driven)
}

/// Calls the other side. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caller {
    connection: u32,
    queue: mpsc::Sender<Vec<u8>>,
    pending: Arc<Mutex<Pending>>,
}

/// Calls that wait for their answers.
#[derive(Debug, Default)]
struct Pending {
    answers: HashMap<u32, oneshot::Sender<ttrpc::Response>>,
    last_stream: Option<u32>,
    ended: bool,
}

impl Pending {
    fn end(&mut self) {
        self.ended = true;
        self.answers.clear();
    }

    /// A caller's streams are odd and ascend. Two thousand million calls end a connection.
    fn next_stream(&mut self) -> Option<u32> {
        let next = self.last_stream.map_or(Some(1), |last| last.checked_add(2))?;
        self.last_stream = Some(next);
        Some(next)
    }
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets a call that is no longer waited for.
struct Waiting<'a> {
    caller: &'a Caller,
    stream: u32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.caller.pending).answers.remove(&self.stream);
    }
}

impl Caller {
    /// Calls `method` of `service` and waits for the answer, at most for `patience`.
    ///
    /// # Errors
    ///
    /// The other side refuses, does not answer in time, or is gone.
    pub async fn call<Answer: prost::Message + Default>(
        &self,
        (service, method): (&str, &str),
        request: &impl prost::Message,
        patience: Duration,
    ) -> Result<Answer, CallError> {
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(patience.as_nanos()).unwrap_or(i64::MAX),
        };
        let (stream, answer) = self.send(request.encode_to_vec())?;
        let _waiting = Waiting { caller: self, stream };
        let answer = timeout(patience, answer).await.map_err(|_| CallError::Late(patience))?;
        let response = answer.map_err(|_| CallError::Ended)?;
        if let Some(refused) = response.status.and_then(Status::from_wire) {
            return Err(refused.into());
        }
        Ok(Answer::decode(response.payload.as_slice())?)
    }

    /// Queues a call. Streams must ascend on the wire, so the lock covers both.
    fn send(&self, data: Vec<u8>) -> Result<(u32, oneshot::Receiver<ttrpc::Response>), CallError> {
        let mut pending = lock(&self.pending);
        let stream = match pending.next_stream() {
            Some(stream) if !pending.ended => stream,
            Some(_) | None => return Err(CallError::Ended),
        };
        let message = Message { stream, kind: Kind::Request, flags: 0, data };
        let frames = message.encode(self.connection)?;
        match self.queue.try_send(frames) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(CallError::Stuck),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(CallError::Ended),
        }
        let (answered, answer) = oneshot::channel();
        pending.answers.insert(stream, answered);
        Ok((stream, answer))
    }
}

async fn write_all(
    mut writing: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
) -> Ended {
    while let Some(frames) = outgoing.recv().await {
        if let Err(error) = writing.write_all(&frames).await {
            return error.into();
        }
    }
    Ended::HungUp
}

/// The reading side.
struct Incoming<S> {
    service: Arc<S>,
    serves: u32,
    calls: u32,
    queue: mpsc::Sender<Vec<u8>>,
    pending: Arc<Mutex<Pending>>,
    last_stream: u32,
    requests: JoinSet<()>,
}

impl<S: Service> Incoming<S> {
    async fn run(mut self, reading: impl AsyncRead + Unpin) -> Ended {
        match self.read(reading).await {
            Ok(()) => Ended::HungUp,
            Err(ended) => ended,
        }
    }

    async fn read(&mut self, mut reading: impl AsyncRead + Unpin) -> Result<(), Ended> {
        let (mut serves, mut calls) = (Assembler::default(), Assembler::default());
        let mut payload = Vec::new();
        loop {
            let mut header = [0; FRAME_HEADER_LEN];
            match reading.read_exact(&mut header).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            };
            let header = FrameHeader::parse(header)?;
            payload.clear();
            // Grows as the bytes come: a header alone must not cost memory.
            let read = (&mut reading).take(header.len.into()).read_to_end(&mut payload).await?;
            if read < header.len as usize {
                return Ok(());
            }
            if header.connection == self.serves {
                serves.push(&payload);
                while let Some(message) = serves.next_message()? {
                    self.request(message).await;
                }
            } else if header.connection == self.calls {
                calls.push(&payload);
                while let Some(message) = calls.next_message()? {
                    self.answer(message);
                }
            } else {
                // Neither of ours: both sides pass over it.
            }
        }
    }

    /// A message on the connection whose service is ours. What is not a call is refused on its
    /// stream, as Go's server does.
    async fn request(&mut self, message: Message) {
        while self.requests.try_join_next().is_some() {}
        let Message { stream, kind, flags, data } = message;
        let refusal = match kind {
            Kind::Request if stream % 2 == 0 => {
                Some((Code::InvalidArgument, "a caller's streams have odd numbers"))
            }
            Kind::Request if stream <= self.last_stream => {
                Some((Code::InvalidArgument, "the numbers of streams ascend"))
            }
            Kind::Request if flags != 0 => {
                Some((Code::Unimplemented, "no method here takes a stream"))
            }
            Kind::Request if self.requests.len() >= REQUESTS_MAX => {
                Some((Code::ResourceExhausted, "too many calls at once"))
            }
            Kind::Request => None,
            Kind::Response | Kind::Other(_) => {
                Some((Code::InvalidArgument, "no such stream is open"))
            }
        };
        if kind == Kind::Request {
            self.last_stream = self.last_stream.max(stream);
        }
        let (queue, connection) = (self.queue.clone(), self.serves);
        if let Some((code, why)) = refusal {
            respond(&queue, connection, stream, Err(Status::new(code, why))).await;
            return;
        }
        let service = Arc::clone(&self.service);
        self.requests.spawn(async move {
            let answer = match decode(&data) {
                Ok(request) => service.call(request).await,
                Err(error) => Err(Status::new(Code::InvalidArgument, error.to_string())),
            };
            respond(&queue, connection, stream, answer).await;
        });
    }

    /// A message on the connection whose caller is ours.
    fn answer(&self, Message { stream, kind, data, .. }: Message) {
        if kind != Kind::Response {
            return; // no call of ours opens a stream that could have data
        }
        let waiting = lock(&self.pending).answers.remove(&stream);
        match (waiting, ttrpc::Response::decode(data.as_slice())) {
            // Whoever asked may have stopped to wait.
            (Some(waiting), Ok(response)) => drop(waiting.send(response)),
            (Some(_), Err(error)) => tracing::debug!(%error, "an answer is not a message"),
            (None, _) => tracing::debug!(stream, "an answer that nobody waits for"),
        }
    }
}

fn decode(data: &[u8]) -> Result<Request, prost::DecodeError> {
    let ttrpc::Request { service, method, payload, timeout_nano } = ttrpc::Request::decode(data)?;
    let timeout = u64::try_from(timeout_nano).ok().filter(|nanos| *nanos > 0);
    Ok(Request { service, method, payload, timeout: timeout.map(Duration::from_nanos) })
}

async fn respond(
    queue: &mpsc::Sender<Vec<u8>>,
    connection: u32,
    stream: u32,
    answer: Result<Vec<u8>, Status>,
) {
    let (payload, status) = match answer {
        Ok(payload) => (payload, None),
        Err(status) => (Vec::new(), Some(status.into_wire())),
    };
    let encode = |response: ttrpc::Response| {
        let data = response.encode_to_vec();
        Message { stream, kind: Kind::Response, flags: 0, data }.encode(connection)
    };
    let frames = encode(ttrpc::Response { status, payload }).or_else(|error| {
        let status = Status::new(Code::ResourceExhausted, error.to_string()).into_wire();
        encode(ttrpc::Response { status: Some(status), payload: Vec::new() })
    });
    match frames {
        // Closed: the connection has ended, and nobody waits for the answer.
        Ok(frames) => drop(queue.send(frames).await),
        Err(error) => tracing::debug!(%error, "an answer cannot be sent"),
    }
}

#[cfg(test)]
mod tests;
