//! The HTTP side: connections, verbs, answers, watches.

use std::{convert::Infallible, sync::Arc};

use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Fault, Shared, State,
    admission::admit_slice,
    rbac::allows,
    request::{Target, Verb, target},
    status,
    store::is_selected,
};

type Body = BoxBody<Bytes, Infallible>;

/// The largest object that is taken: what the real one takes.
const BODY_LEN_MAX: usize = 3 * 1024 * 1024;

/// A refusal: HTTP code, reason and message.
struct Refusal(u16, &'static str, String);

pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                connections.spawn(connection(stream, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { answer(request, shared).await }
    });
    // A caller that hangs up is no trouble of the double's.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A connection that is cut instead of an answer.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for Cut {}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Cut> {
    if request.uri().path() == "/version" {
        let minor = shared.state().options.minor;
        return Ok(response(200, &version(minor)));
    }
    let Some(target) = target(request.method(), request.uri()) else {
        return Ok(refused(&Refusal(404, "NotFound", "no such path".to_owned())));
    };
    let body = http_body_util::Limited::new(request.into_body(), BODY_LEN_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let fault = {
        let mut state = shared.state();
        state.calls.push(target.call.clone());
        state.take_fault(target.call.verb)
    };
    match fault {
        Some(Fault::Refuse(code)) => {
            return Ok(refused(&Refusal(code, "Injected", "a fault of the test".to_owned())));
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::CutAfter) | None => {}
    }
    if target.call.verb == Verb::Watch {
        return Ok(watch(target, &shared).unwrap_or_else(|refusal| refused(&refusal)));
    }
    let result = act(&target, body, &mut shared.state());
    shared.announce();
    if fault == Some(Fault::CutAfter) {
        return Err(Cut);
    }
    Ok(match result {
        Ok((code, value)) => response(code, &value),
        Err(refusal) => refused(&refusal),
    })
}

fn act(target: &Target, body: Value, state: &mut State) -> Result<(u16, Value), Refusal> {
    authorize(target, &target.call.resource, target.call.verb.as_str(), &target.call.name, state)?;
    let call = &target.call;
    match call.verb {
        Verb::Get => find(target, state).map(|found| (200, found)),
        Verb::List => {
            let items: Vec<Value> = selected(target, state);
            let list = json!({
                "apiVersion": target.resource.api_version(),
                "kind": format!("{}List", target.resource.kind),
                "metadata": { "resourceVersion": state.store.revision().to_string() },
                "items": items,
            });
            Ok((200, list))
        }
        Verb::Create => create(target, body, state).map(|created| (201, created)),
        Verb::Update => update(target, body, state).map(|updated| (200, updated)),
        Verb::Patch => patch(target, &body, state).map(|patched| (200, patched)),
        Verb::Delete => {
            let found = find(target, state)?;
            check_preconditions(&found, &body["preconditions"])?;
            state.store.remove(target.resource.plural, &call.namespace, &call.name);
            Ok((200, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })))
        }
        Verb::DeleteCollection => {
            for object in selected(target, state) {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                state.store.remove(target.resource.plural, &call.namespace, name);
            }
            Ok((200, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })))
        }
        Verb::Watch => Err(Refusal(500, "InternalError", "answered elsewhere".to_owned())),
    }
}

fn authorize(
    target: &Target,
    resource: &str,
    verb: &str,
    name: &str,
    state: &State,
) -> Result<(), Refusal> {
    let group = &target.call.group;
    let allowed =
        state.options.rules.as_ref().is_none_or(|rules| allows(rules, group, resource, verb, name));
    if allowed {
        return Ok(());
    }
    let message = format!("cannot {verb} resource \"{resource}\" in API group \"{group}\" {name}");
    Err(Refusal(403, "Forbidden", message))
}

fn find(target: &Target, state: &State) -> Result<Value, Refusal> {
    let call = &target.call;
    let found = state.store.get(target.resource.plural, &call.namespace, &call.name);
    let missing = || {
        let message = format!("{} \"{}\" not found", target.resource.plural, call.name);
        Refusal(404, "NotFound", message)
    };
    found.cloned().ok_or_else(missing)
}

fn selected(target: &Target, state: &State) -> Vec<Value> {
    let namespace = &target.call.namespace;
    let objects = state.store.list(target.resource.plural);
    objects
        .filter(|object| namespace.is_empty() || object["metadata"]["namespace"] == **namespace)
        .filter(|object| is_selected(object, &target.field_selector))
        .cloned()
        .collect()
}

fn admit(
    target: &Target,
    object: Value,
    before: Option<&Value>,
    state: &State,
) -> Result<Value, Refusal> {
    if target.resource.kind != "ResourceSlice" {
        return Ok(object);
    }
    let options = &state.options;
    let admitted = admit_slice(object, before, options.gates, options.minor);
    admitted.map_err(|errors| Refusal(422, "Invalid", errors.join("; ")))
}

fn create(target: &Target, mut body: Value, state: &mut State) -> Result<Value, Refusal> {
    let call = &target.call;
    if !call.namespace.is_empty() {
        body["metadata"]["namespace"] = json!(call.namespace);
    }
    if body["metadata"]["name"].is_null() {
        let stem = body["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
        body["metadata"]["name"] = json!(format!("{stem}{:05x}", state.store.revision()));
    }
    let object = admit(target, body, None, state)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if state.store.get(target.resource.plural, &call.namespace, name).is_some() {
        let message = format!("{} \"{name}\" already exists", target.resource.plural);
        return Err(Refusal(409, "AlreadyExists", message));
    }
    if call.dry_run { Ok(object) } else { Ok(state.store.put(target.resource, object)) }
}

fn update(target: &Target, body: Value, state: &mut State) -> Result<Value, Refusal> {
    let before = find(target, state)?;
    let metadata = &body["metadata"];
    check_preconditions(&before, metadata)?;
    let mut object = admit(target, body, Some(&before), state)?;
    object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
    for field in ["uid", "creationTimestamp"] {
        object["metadata"][field] = before["metadata"][field].clone();
    }
    if object == before || target.call.dry_run {
        return Ok(object); // nothing changed: no new version
    }
    Ok(state.store.put(target.resource, object))
}

fn patch(target: &Target, body: &Value, state: &mut State) -> Result<Value, Refusal> {
    if target.call.resource != "resourceclaims/status" || target.field_manager.is_empty() {
        let message = "the double applies the status of claims, and nothing else".to_owned();
        return Err(Refusal(415, "UnsupportedMediaType", message));
    }
    for driver in status::drivers(body) {
        authorize(target, "resourceclaims/driver", "associated-node:patch", &driver, state)?;
    }
    let before = find(target, state)?;
    check_preconditions(&before, &json!({ "uid": body["metadata"]["uid"] }))?;
    let merged = status::apply(&before, body);
    let merged = merged.map_err(|message| Refusal(422, "Invalid", message))?;
    if merged == before { Ok(before) } else { Ok(state.store.put(target.resource, merged)) }
}

/// Checks `uid` and `resourceVersion` where they are given.
fn check_preconditions(object: &Value, wanted: &Value) -> Result<(), Refusal> {
    for field in ["uid", "resourceVersion"] {
        let value = &wanted[field];
        if !value.is_null() && *value != object["metadata"][field] {
            let message = format!("{field} is {} not {value}", object["metadata"][field]);
            return Err(Refusal(409, "Conflict", message));
        }
    }
    Ok(())
}

fn watch(target: Target, shared: &Arc<Shared>) -> Result<Response<Body>, Refusal> {
    let epoch = {
        let state = shared.state();
        authorize(&target, target.resource.plural, "watch", "", &state)?;
        state.watch_epoch
    };
    let from: u64 = target.resource_version.parse().unwrap_or(0);
    let (sender, frames) = mpsc::channel(16);
    tokio::spawn(follow(target, from, epoch, Arc::clone(shared), sender));
    let body = StreamBody::new(ReceiverStream::new(frames));
    Ok(Response::new(BodyExt::boxed(body)))
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

async fn follow(target: Target, from: u64, epoch: u64, shared: Arc<Shared>, frames: Frames) {
    let mut revisions = shared.revisions();
    let mut known = from;
    let resource = target.resource.plural;
    loop {
        let (changes, ended) = {
            let state = shared.state();
            (state.store.since(resource, known), state.watch_epoch != epoch)
        };
        let Some(changes) = changes else {
            let gone = Refusal(410, "Expired", "too old resource version".to_owned());
            let event = json!({ "type": "ERROR", "object": status_of(&gone) });
            let _ = frames.send(Ok(line(&event))).await;
            return;
        };
        for entry in changes {
            known = entry.revision;
            if is_selected(&entry.object, &target.field_selector) {
                let event = json!({ "type": entry.kind, "object": entry.object });
                if frames.send(Ok(line(&event))).await.is_err() {
                    return;
                }
            }
        }
        if ended {
            return;
        }
        tokio::select! {
            more = revisions.changed() => if more.is_err() { return },
            () = frames.closed() => return,
        }
    }
}

fn line(event: &Value) -> Frame<Bytes> {
    Frame::data(Bytes::from(format!("{event}\n")))
}

fn version(minor: u32) -> Value {
    json!({
        "major": "1", "minor": minor.to_string(), "gitVersion": format!("v1.{minor}.0"),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "", "goVersion": "",
        "compiler": "gc", "platform": "linux/amd64",
    })
}

fn status_of(Refusal(code, reason, message): &Refusal) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn refused(refusal: &Refusal) -> Response<Body> {
    response(refusal.0, &status_of(refusal))
}

fn response(code: u16, value: &Value) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(value.to_string()));
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
