//! Two ends of one stream, and one end against whatever a stream may bring.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

/// Answers with what it was sent; refuses `refuse`; never answers `hang`.
struct Echo;

impl Service for Echo {
    async fn call(&self, request: Request) -> Result<Vec<u8>, Status> {
        match request.method.as_str() {
            "refuse" => Err(Status::new(Code::Unimplemented, "no")),
            "hang" => std::future::pending().await,
            _ => Ok(request.payload),
        }
    }
}

const PATIENCE: Duration = Duration::from_mins(1);

fn words(text: &str) -> ttrpc::Status {
    ttrpc::Status { code: 1, message: text.to_owned() }
}

/// Both ends, spoken for.
fn pair() -> (Caller, Caller) {
    let (one, two) = duplex(8192);
    let (runtime, driven) = connect(one, Role::Runtime, Echo);
    tokio::spawn(driven);
    let (plugin, driven) = connect(two, Role::Plugin, Echo);
    tokio::spawn(driven);
    (runtime, plugin)
}

#[tokio::test]
async fn both_sides_call_at_once() {
    let (runtime, plugin) = pair();
    let long = "x".repeat(100_000);
    let tasks = (0..32).map(|index| {
        let caller = if index % 2 == 0 { runtime.clone() } else { plugin.clone() };
        let sent = words(&format!("{index} {long}"));
        tokio::spawn(async move {
            let answer: ttrpc::Status = caller.call(("s", "m"), &sent, PATIENCE).await.unwrap();
            assert_eq!(answer, sent);
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_and_a_late_answer_are_told_apart() {
    let (runtime, _plugin) = pair();
    let call = |method, patience| {
        let runtime = runtime.clone();
        async move { runtime.call::<ttrpc::Status>(("s", method), &words(""), patience).await }
    };
    let refused = call("refuse", PATIENCE).await.unwrap_err();
    assert_eq!(refused.to_string(), "no (Unimplemented)");
    let late = call("hang", Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(late, CallError::Late(_)), "{late}");
    assert!(lock(&runtime.pending).answers.is_empty(), "forgotten when nobody waits");
    call("echo", PATIENCE).await.unwrap();
}

#[tokio::test]
async fn calls_under_way_fail_when_the_stream_ends() {
    let (one, two) = duplex(8192);
    let (runtime, driven) = connect(one, Role::Runtime, Echo);
    let driven = tokio::spawn(driven);
    let called = tokio::spawn(async move {
        let first = runtime.call::<ttrpc::Status>(("s", "m"), &words(""), PATIENCE).await;
        let second = runtime.call::<ttrpc::Status>(("s", "m"), &words(""), PATIENCE).await;
        (first, second)
    });
    drop(two);
    assert!(matches!(driven.await.unwrap(), Ended::HungUp | Ended::Broken(_)));
    let (first, second) = called.await.unwrap();
    assert!(matches!(first, Err(CallError::Ended)), "{first:?}");
    assert!(matches!(second, Err(CallError::Ended)), "{second:?}");
}

/// A plugin's end, and the stream to feed it by hand.
fn plugin() -> (DuplexStream, tokio::task::JoinHandle<Ended>) {
    let (one, two) = duplex(1 << 20);
    let (_caller, driven) = connect(two, Role::Plugin, Echo);
    (one, tokio::spawn(driven))
}

/// Sends messages to a plugin and checks the code and text of each answer, in order.
async fn check(messages: &[(Kind, u32, u8, &[u8])], expected: &[(u32, &str)]) {
    let (mut stream, _driven) = plugin();
    let mut assembler = Assembler::default();
    for (&(kind, number, flags, data), expected) in messages.iter().zip(expected) {
        let message = Message { stream: number, kind, flags, data: data.to_vec() };
        stream.write_all(&message.encode(PLUGIN_CONNECTION).unwrap()).await.unwrap();
        let answer = loop {
            if let Some(message) = assembler.next_message().unwrap() {
                break message;
            }
            let mut header = [0; FRAME_HEADER_LEN];
            stream.read_exact(&mut header).await.unwrap();
            let header = FrameHeader::parse(header).unwrap();
            assert_eq!(header.connection, PLUGIN_CONNECTION);
            let mut payload = vec![0; header.len as usize];
            stream.read_exact(&mut payload).await.unwrap();
            assembler.push(&payload);
        };
        let response = ttrpc::Response::decode(answer.data.as_slice()).unwrap();
        let words = response.status.map_or("ok".to_owned(), |status| status.message);
        assert_eq!((answer.stream, words.as_str()), *expected);
    }
}

#[tokio::test]
async fn what_is_not_a_call_is_refused_on_its_stream() {
    let call = ttrpc::Request::default().encode_to_vec();
    check(
        &[
            (Kind::Request, 1, 0, &call),
            (Kind::Request, 1, 0, &call),
            (Kind::Request, 4, 0, &call),
            (Kind::Request, 5, 2, &call),
            (Kind::Other(3), 5, 0, &call),
            (Kind::Request, 7, 0, &[0xff]),
            (Kind::Request, u32::MAX, 0, &call),
        ],
        &[
            (1, "ok"),
            (1, "the numbers of streams ascend"),
            (4, "a caller's streams have odd numbers"),
            (5, "no method here takes a stream"),
            (5, "no such stream is open"),
            (7, "failed to decode Protobuf message: invalid varint"),
            (u32::MAX, "ok"),
        ],
    )
    .await;
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 64]] {
        let (mut stream, driven) = plugin();
        stream.write_all(garbage).await.unwrap();
        let ended = driven.await.unwrap();
        assert!(matches!(ended, Ended::Garbage(FrameError::FrameTooLong(_))), "{ended}");
    }
    // A frame that is in order, with a message that is not.
    let (mut stream, driven) = plugin();
    let frame = [&[0, 0, 0, 1, 0, 0, 0, 10][..], &[0xff; 10]].concat();
    stream.write_all(&frame).await.unwrap();
    assert!(matches!(driven.await.unwrap(), Ended::Garbage(FrameError::MessageTooLong(_))));
}

#[tokio::test]
async fn foreign_connections_and_empty_frames_are_passed_over() {
    let (mut stream, driven) = plugin();
    let frames = [&[0, 0, 0, 9, 0, 0, 0, 2][..], b"xx", &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
    stream.write_all(&frames).await.unwrap();
    drop(stream);
    assert!(matches!(driven.await.unwrap(), Ended::HungUp));
}
