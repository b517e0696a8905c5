//! Turns as spans: a few of them, with what each was given, while somebody reads.

use std::time::Duration;

use accelpool_proto::node::{Span, WatchSpansRequest};
use tonic::Response;

use crate::{
    FOR_EVER,
    scene::{DEVICE, Scene},
};

fn number(span: &Span, key: &str) -> Option<f64> {
    span.attributes.iter().find(|it| it.key == key)?.number
}

fn text<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    span.attributes.iter().find(|it| it.key == key).map(|it| it.value.as_str())
}

#[test]
fn some_turns_are_spans_that_say_what_they_were_given() {
    let scene = Scene::new();
    scene.share("a", 8, 750);
    scene.share("b", 8, 250);
    let (mut a, mut b) = (scene.tenant("a"), scene.tenant("b"));
    a.send(FOR_EVER);
    b.send(FOR_EVER);
    let devices = scene.client.devices().unwrap();
    let device = devices.into_iter().find(|device| device.name == DEVICE).unwrap();
    let read = scene.client.call(async |mut node| {
        let mut told = node.watch_spans(WatchSpansRequest {}).await?.into_inner();
        let mut turns: Vec<Span> = Vec::new();
        let is_of = |claim| move |turn: &Span| text(turn, "accelpool.claim.uid") == Some(claim);
        let has_hand_over =
            |turn: &Span| number(turn, "accelpool.turn.hand_over_ms").is_some_and(|it| it > 0.0);
        while !turns.iter().any(is_of("a"))
            || !turns.iter().any(is_of("b"))
            || !turns.iter().any(has_hand_over)
        {
            let Some(message) = told.message().await? else { break };
            turns.extend(message.span.filter(|span| span.name == "turn"));
        }
        Ok(Response::new(turns))
    });
    for turn in read.unwrap() {
        let took = Duration::from_nanos(turn.end_unix_ns - turn.start_unix_ns);
        let took_ms = took.as_secs_f64() * 1e3;
        let of = |key: &str| number(&turn, &format!("accelpool.turn.{key}"));
        assert_eq!(text(&turn, "accelpool.device.uuid"), Some(device.uuid.as_str()));
        assert_eq!(text(&turn, "accelpool.turn.class"), Some("normal"));
        assert!(turn.undecided && turn.parent_span_id.is_empty(), "its reader samples it");
        let measured_ms = of("measured_ms").unwrap();
        // The wall clock may be set while a turn lasts, by less than this.
        assert!((0.0..=took_ms + 1.0).contains(&measured_ms), "{turn:?}");
        assert!(of("drain_ms").unwrap() <= took_ms + 1.0, "{turn:?}");
        assert!(of("granted_ms").is_none_or(|it| it > 0.0), "{turn:?}");
    }
}
