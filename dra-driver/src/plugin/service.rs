//! One extended resource, as the kubelet asks about it.

use std::{collections::BTreeSet, pin::Pin};

use accelpool_model::Chain;
use accelpool_proto::kubelet::v1beta1 as wire;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use tracing::field::Empty;

use super::{
    allocate::{AllocateError, Allocator},
    bind::Binder,
    offer::Offered,
    prefer::{Choice, prefer},
};
use crate::{
    node::{NodeError, Trouble},
    otel,
    stop::Stopped,
};

/// What each resource of this driver wants of the optional calls.
pub(super) const OPTIONS: wire::DevicePluginOptions = wire::DevicePluginOptions {
    pre_start_required: true,
    get_preferred_allocation_available: true,
};

const NOT_BOUND: &str = "the container's pod cannot be let use its devices";

/// The devices of a resource, newest last.
pub(super) type List = watch::Receiver<Vec<Offered>>;

/// Serves one extended resource.
#[derive(Debug, Clone)]
pub(super) struct ResourceService {
    pub(super) resource: String,
    pub(super) list: List,
    pub(super) allocator: Allocator,
    pub(super) binder: Binder,
    pub(super) stopped: Stopped,
}

impl ResourceService {
    /// The devices with these ids, in this order.
    fn find(&self, ids: &[String]) -> Result<Vec<Offered>, Status> {
        let list = self.list.borrow();
        let distinct: BTreeSet<&String> = ids.iter().collect();
        if distinct.len() != ids.len() {
            return Err(Status::invalid_argument("a device is asked for twice"));
        }
        let find = |id: &String| {
            let found = list.iter().find(|device| device.id == *id).cloned();
            found.ok_or_else(|| {
                let id: String = id.chars().take(80).flat_map(char::escape_debug).collect();
                let resource = &self.resource;
                Status::not_found(format!("device `{id}` of {resource} is not on this node"))
            })
        };
        ids.iter().map(find).collect()
    }
}

#[tonic::async_trait]
impl wire::device_plugin_server::DevicePlugin for ResourceService {
    async fn get_device_plugin_options(
        &self,
        _request: Request<wire::Empty>,
    ) -> Result<Response<wire::DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<wire::ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _request: Request<wire::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = WatchStream::new(self.list.clone())
            .map(|devices| Ok(wire::ListAndWatchResponse { devices: on_wire(&devices) }));
        let stopped = self.stopped.clone();
        Ok(Response::new(Box::pin(EndsWith { lists, stopped: Box::pin(stopped.wait()) })))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<wire::PreferredAllocationRequest>,
    ) -> Result<Response<wire::PreferredAllocationResponse>, Status> {
        let offered = self.list.borrow().clone();
        let mut container_responses = Vec::new();
        for asked in request.into_inner().container_requests {
            let choice = Choice {
                available: asked.available_device_i_ds,
                must_include: asked.must_include_device_i_ds,
                size: usize::try_from(asked.allocation_size).unwrap_or_default(),
            };
            let device_i_ds = prefer(self.allocator.node(), &offered, choice).await;
            container_responses.push(wire::ContainerPreferredAllocationResponse { device_i_ds });
        }
        Ok(Response::new(wire::PreferredAllocationResponse { container_responses }))
    }

    #[tracing::instrument(name = "allocate", skip_all, fields(resource = %self.resource, trace = Empty))]
    async fn allocate(
        &self,
        request: Request<wire::AllocateRequest>,
    ) -> Result<Response<wire::AllocateResponse>, Status> {
        let parent = otel::caller(request.metadata());
        let mut container_responses = Vec::new();
        for asked in request.into_inner().container_requests {
            let devices = self.find(&asked.devices_ids)?;
            let cdi_ids = self.allocator.allocate(&self.resource, devices, parent).await;
            let cdi_ids = cdi_ids.map_err(|error| refusal(&error))?;
            container_responses.push(wire::ContainerAllocateResponse {
                cdi_devices: cdi_ids.into_iter().map(|name| wire::CdiDevice { name }).collect(),
                ..wire::ContainerAllocateResponse::default()
            });
        }
        Ok(Response::new(wire::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<wire::PreStartContainerRequest>,
    ) -> Result<Response<wire::PreStartContainerResponse>, Status> {
        let ids = request.into_inner().devices_ids;
        if let Err(error) = self.binder.bind(&self.resource, &ids).await {
            let text = Chain(&error).to_string();
            let enforced =
                self.list.borrow().iter().any(|device| device.enforced && ids.contains(&device.id));
            tracing::warn!(resource = self.resource, error = text, enforced, "{NOT_BOUND}");
            // Where nothing is refused, a container is not kept from starting for that.
            if enforced {
                return Err(Status::unavailable(format!("{NOT_BOUND}: {text}")));
            }
        }
        Ok(Response::new(wire::PreStartContainerResponse {}))
    }
}

/// A stream of lists that also ends when the service does.
struct EndsWith<Lists> {
    lists: Lists,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<Lists: Stream + Unpin> Stream for EndsWith<Lists> {
    type Item = Lists::Item;

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.stopped.as_mut().poll(context).is_ready() {
            return std::task::Poll::Ready(None);
        }
        Pin::new(&mut this.lists).poll_next(context)
    }
}

fn on_wire(devices: &[Offered]) -> Vec<wire::Device> {
    let device = |device: &Offered| wire::Device {
        id: device.id.clone(),
        health: if device.healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
        topology: device
            .numa_node
            .map(|node| wire::TopologyInfo { nodes: vec![wire::NumaNode { id: node.into() }] }),
    };
    devices.iter().map(device).collect()
}

/// The text that the kubelet puts into the pod's status.
fn refusal(error: &AllocateError) -> Status {
    let busy = |source: &NodeError| match source.trouble() {
        Trouble::Busy => true,
        Trouble::Away | Trouble::Final => false,
    };
    let advice = match error {
        AllocateError::Node { source, .. } if busy(source) => {
            "create the pod anew: the node no longer offers the device"
        }
        AllocateError::Node { .. }
        | AllocateError::Slow { .. }
        | AllocateError::NoCdiId { .. }
        | AllocateError::Task(_) => {
            "create the pod anew; if it stays, ask the administrator to look at accelpoold on \
             this node"
        }
    };
    let text = format!("{}: {advice}", Chain(error));
    tracing::warn!(error = text, "allocation failed");
    Status::unavailable(text)
}
