//! What the daemon tells of its work: spans to whoever reads, and the trace's id in its log, its
//! audit log and its figures.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::fs;

use accelpool_proto::{
    node::{Exemplar, Span, WatchSpansRequest, node_client::NodeClient},
    trace::{TRACEPARENT, TraceContext},
};
use accelpool_tests::{
    Client, Home,
    requests::{claim, named},
    wait_for,
};
use serde_json::Value;
use tonic::{Request, Response, transport::Channel};

const GPU: &str = "gpu-0000-1b-00-0";
const OTHER: &str = "gpu-0000-43-00-0";

/// The spans up to the last one of this name, of whatever `act` has the daemon do.
fn spans_of(client: &Client, last: &str, act: impl AsyncFnOnce(NodeClient<Channel>)) -> Vec<Span> {
    let read = client.call(async |mut node| {
        let mut told = node.watch_spans(WatchSpansRequest {}).await?.into_inner();
        act(node).await;
        let mut spans: Vec<Span> = Vec::new();
        while spans.last().is_none_or(|span| span.name != last) {
            let message = told.message().await?.expect("the daemon goes on");
            spans.extend(message.span);
        }
        Ok(Response::new(spans))
    });
    read.unwrap()
}

fn hex(id: &[u8]) -> String {
    let digits: Vec<String> = id.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

/// The line of the log that says `words` about `about`.
fn logged(home: &Home, words: &str, about: &str) -> String {
    wait_for(words, || {
        let log = fs::read_to_string(home.log()).unwrap();
        let line = log.lines().find(|line| line.contains(words) && line.contains(about));
        line.map(str::to_owned)
    })
}

/// The records of the audit log of this kind.
fn audited(home: &Home, kind: &str) -> Vec<Value> {
    let folder = home.ledger().with_file_name("audit");
    let shown = home.run_program(&["audit", "show", folder.to_str().unwrap(), "-o", "json"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["kind"] == kind).collect()
}

fn exemplars(client: &Client) -> Vec<Exemplar> {
    let prepares = client.metrics().unwrap().daemon.unwrap().prepares;
    prepares.into_iter().filter_map(|it| it.timing).flat_map(|it| it.exemplars).collect()
}

#[test]
fn a_traced_claim_names_its_trace_wherever_it_is_told_of() {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    client.prepare(claim("plain", vec![named("gpu", OTHER)])).unwrap();
    assert_eq!(exemplars(&client), []);
    let parent = TraceContext::fresh();
    let spans = spans_of(&client, "PrepareClaim", async |mut node| {
        let mut request = Request::new(claim("traced", vec![named("gpu", GPU)]));
        request.metadata_mut().insert(TRACEPARENT, parent.to_string().parse().unwrap());
        node.prepare_claim(request).await.unwrap();
    });
    let call = spans.last().unwrap();
    let trace_id = hex(&call.trace_id);
    assert_eq!(trace_id, format!("{:032x}", parent.trace_id));

    assert!(logged(&home, "claim prepared", "claim=traced").contains(&trace_id));
    let plain = logged(&home, "claim prepared", "claim=plain");
    assert!(!plain.contains("trace="), "{plain}");
    let [of_plain, of_traced] = <[Value; 2]>::try_from(audited(&home, "prepared")).unwrap();
    assert_eq!((&of_traced["claim"], &of_traced["trace"]), (&"traced".into(), &trace_id.into()));
    assert_eq!(of_plain.get("trace"), None);
    let [exemplar] = <[Exemplar; 1]>::try_from(exemplars(&client)).unwrap();
    assert_eq!((&exemplar.trace_id, &exemplar.span_id), (&call.trace_id, &call.span_id));
    assert!(exemplar.value_s > 0.0 && exemplar.unix_ms > 0);
}

#[test]
fn a_fault_is_a_trace_of_its_own() {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let spans = spans_of(&daemon.client(), "fault", async |_node| {
        home.script(&format!(
            "[[fault]]\nid = \"1\"\ndevice = \"{GPU}\"\nclass = \"memory-uncorrectable\"\n\
             code = \"xid-48\"\nmessage = \"double bit\"\n"
        ));
    });
    let fault = spans.last().unwrap();
    assert!(fault.undecided && fault.parent_span_id.is_empty(), "nobody asked for it: {fault:?}");
    assert!(!fault.error.is_empty());
    let told: Vec<_> =
        fault.attributes.iter().map(|it| (it.key.as_str(), it.value.as_str())).collect();
    assert!(told.contains(&("accelpool.device", GPU)), "{told:?}");
    assert!(told.contains(&("accelpool.fault.code", "xid-48")), "{told:?}");
    let commit = spans.iter().find(|span| span.parent_span_id == fault.span_id).unwrap();
    assert_eq!((commit.name.as_str(), &commit.trace_id), ("ledger commit", &fault.trace_id));

    let trace_id = hex(&fault.trace_id);
    assert!(logged(&home, "device tainted", GPU).contains(&trace_id));
    let [tainted] = <[Value; 1]>::try_from(audited(&home, "tainted")).unwrap();
    assert_eq!(tainted["trace"], trace_id.as_str());
}
