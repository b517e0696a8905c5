//! The plugin's side of the API: methods by name become calls of a trait.
//!
//! Runtimes before NRI 0.12 tell most events through one method, `StateChange`; later ones have
//! a method for each. To a plugin they are the same.

use std::time::Duration;

use accelpool_proto::nri::{
    ConfigureRequest, ConfigureResponse, Container, ContainerAdjustment, CreateContainerRequest,
    CreateContainerResponse, Empty, Event, EventRequest, PodSandbox, StateChangeEvent,
    SynchronizeRequest, SynchronizeResponse,
};
use prost::{
    Message,
    encoding::{DecodeContext, decode_key, skip_field},
};

use crate::{
    PLUGIN_SERVICE,
    connection::{Request, Service},
    status::{Code, Status},
};

/// More pods and containers than one message of 4 MiB has in earnest: a container takes a
/// kilobyte. Keeps a message of nothing but empty ones from growing a hundredfold in memory.
const OBJECTS_MAX: usize = 16 * 1024;

/// The events that a plugin wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events(i32);

impl Events {
    /// These, which must be at least one: to name none means all, also those of the future.
    #[must_use]
    pub fn of(events: &[Event]) -> Self {
        Self(events.iter().fold(0, |mask, event| mask | (1 << (*event as i32 - 1).max(0))))
    }

    /// True if `event` is among them, as a runtime reads the mask.
    #[must_use]
    pub fn contains(self, event: Event) -> bool {
        self.0 == 0 || self.0 & (1 << (event as i32 - 1).max(0)) != 0
    }
}

impl From<Events> for ConfigureResponse {
    fn from(Events(events): Events) -> Self {
        Self { events }
    }
}

impl From<&ConfigureResponse> for Events {
    fn from(response: &ConfigureResponse) -> Self {
        Self(response.events)
    }
}

/// What an event is about: a pod, or a container with its pod.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct About {
    pub pod: PodSandbox,
    pub container: Option<Container>,
}

/// A plugin. Each call comes with the time that the runtime still waits.
pub trait Plugin: Send + Sync + 'static {
    /// Learns about the runtime, and says which events it wants.
    fn configure(
        &self,
        request: ConfigureRequest,
    ) -> impl Future<Output = Result<Events, Status>> + Send;

    /// Takes in what there is already; more follows if the request says so.
    fn synchronize(
        &self,
        request: SynchronizeRequest,
        patience: Option<Duration>,
    ) -> impl Future<Output = Result<(), Status>> + Send;

    /// Says what is to be changed of a container before it is made.
    fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
        patience: Option<Duration>,
    ) -> impl Future<Output = Result<ContainerAdjustment, Status>> + Send;

    /// Hears of an event.
    fn event(
        &self,
        event: Event,
        about: About,
        patience: Option<Duration>,
    ) -> impl Future<Output = ()> + Send;
}

/// A plugin as a service.
#[derive(Debug)]
pub struct PluginService<P>(pub P);

impl<P: Plugin> Service for PluginService<P> {
    async fn call(&self, request: Request) -> Result<Vec<u8>, Status> {
        let Request { service, method, payload, timeout } = request;
        if service != PLUGIN_SERVICE {
            return Err(unknown(&service, &method));
        }
        let answer = match method.as_str() {
            "Configure" => {
                let events = self.0.configure(decode(&payload)?).await?;
                ConfigureResponse::from(events).encode_to_vec()
            }
            "Synchronize" => {
                check_objects(&payload)?;
                let request: SynchronizeRequest = decode(&payload)?;
                let more = request.more;
                self.0.synchronize(request, timeout).await?;
                SynchronizeResponse { update: Vec::new(), more }.encode_to_vec()
            }
            "CreateContainer" => {
                let CreateContainerRequest { pod, container } = decode(&payload)?;
                let (pod, container) = (pod.unwrap_or_default(), container.unwrap_or_default());
                let adjust = self.0.create_container(pod, container, timeout).await?;
                let adjust = Some(adjust);
                CreateContainerResponse { adjust, update: Vec::new() }.encode_to_vec()
            }
            "StateChange" => {
                let StateChangeEvent { event, pod, container } = decode(&payload)?;
                // An event of the future is none of those that were asked for.
                if let Ok(event) = Event::try_from(event) {
                    let about = About { pod: pod.unwrap_or_default(), container };
                    self.0.event(event, about, timeout).await;
                }
                Empty {}.encode_to_vec()
            }
            _ => match event_of(&method) {
                Some(event) => {
                    let EventRequest { pod, container } = decode(&payload)?;
                    let about = About { pod: pod.unwrap_or_default(), container };
                    self.0.event(event, about, timeout).await;
                    Empty {}.encode_to_vec()
                }
                // Nothing to say, whatever they are about: their answers may be empty.
                None if IGNORED.contains(&method.as_str()) => Vec::new(),
                None => return Err(unknown(&service, &method)),
            },
        };
        Ok(answer)
    }
}

/// Methods that a runtime may call although nobody asked for their events.
const IGNORED: [&str; 4] =
    ["Shutdown", "UpdateContainer", "UpdatePodSandbox", "ValidateContainerAdjustment"];

fn event_of(method: &str) -> Option<Event> {
    Some(match method {
        "RunPodSandbox" => Event::RunPodSandbox,
        "StopPodSandbox" => Event::StopPodSandbox,
        "RemovePodSandbox" => Event::RemovePodSandbox,
        "PostUpdatePodSandbox" => Event::PostUpdatePodSandbox,
        "PostCreateContainer" => Event::PostCreateContainer,
        "StartContainer" => Event::StartContainer,
        "PostStartContainer" => Event::PostStartContainer,
        "PostUpdateContainer" => Event::PostUpdateContainer,
        "StopContainer" => Event::StopContainer,
        "RemoveContainer" => Event::RemoveContainer,
        _ => return None,
    })
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))
}

fn unknown(service: &str, method: &str) -> Status {
    let message = format!("this plugin has no method {service}/{method}");
    Status::new(Code::Unimplemented, message)
}

/// Counts the objects of a list before they are made.
fn check_objects(mut payload: &[u8]) -> Result<(), Status> {
    let malformed =
        |error: prost::DecodeError| Status::new(Code::InvalidArgument, error.to_string());
    let mut objects = 0;
    while !payload.is_empty() {
        let (tag, wire_type) = decode_key(&mut payload).map_err(malformed)?;
        skip_field(wire_type, tag, &mut payload, DecodeContext::default()).map_err(malformed)?;
        objects += 1;
        if objects > OBJECTS_MAX {
            let message = format!("more than {OBJECTS_MAX} pods and containers in one message");
            return Err(Status::new(Code::ResourceExhausted, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_bits_from_the_first() {
        assert_eq!(ConfigureResponse::from(Events::of(&[Event::RunPodSandbox])).events, 1);
        let events = Events::of(&[Event::CreateContainer, Event::RemoveContainer]);
        assert_eq!(ConfigureResponse::from(events).events, 0b100_0000_1000);
        assert!(events.contains(Event::CreateContainer));
        assert!(!events.contains(Event::StartContainer));
        assert!(Events::of(&[]).contains(Event::StartContainer), "none stands for all");
    }

    #[test]
    fn a_list_of_nothing_is_counted_before_it_is_made() {
        let request = |count| SynchronizeRequest {
            pods: vec![PodSandbox::default(); count],
            ..SynchronizeRequest::default()
        };
        assert_eq!(check_objects(&request(OBJECTS_MAX).encode_to_vec()), Ok(()));
        let refused = check_objects(&request(OBJECTS_MAX + 1).encode_to_vec()).unwrap_err();
        assert_eq!(refused.code, Code::ResourceExhausted);
        assert_eq!(check_objects(&[0xff]).unwrap_err().code, Code::InvalidArgument);
    }
}
