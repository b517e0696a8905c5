//! Calls the daemon at the socket of its argument, and prints how each call ended: the code and
//! the page. Run as a user who may not, to see that he may not.

#![forbid(unsafe_code)]

use std::{env, path::Path};

use accelpool_proto::node::{GetTopologyRequest, QuiesceRequest};
use accelpool_tests::{
    Client, page,
    requests::{claim, named},
};
use tonic::Status;

fn main() {
    let socket = env::args_os().nth(1).expect("the socket is the only argument");
    let client = Client::connect(Path::new(&socket));
    let device = "gpu-0000-1b-00-0";
    tell("claims", client.claims());
    tell("devices", client.devices());
    tell("node", client.node());
    tell("topology", client.call(async |mut node| node.get_topology(GetTopologyRequest {}).await));
    tell("prepare", client.prepare(claim("stranger", vec![named("gpu", device)])));
    tell("release", client.release("held"));
    tell("taint", client.taint(device, "mine"));
    tell("untaint", client.untaint(device));
    let quiesce = QuiesceRequest::default();
    tell("quiesce", client.call(async |mut node| node.quiesce(quiesce).await));
}

fn tell<T>(call: &str, ended: Result<T, Status>) {
    match ended {
        Ok(_) => println!("{call} ok"),
        Err(status) => println!("{call} {:?} {}", status.code(), page(&status).unwrap_or("-")),
    }
}
