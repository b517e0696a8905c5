//! What the script does to single calls: delays, hangs, errors.

use std::{thread, time::Duration};

use accelpool_model::DeviceUuid;
use accelpool_vendor_api::VendorError;

use crate::{
    script::{CallErrorKind, CallStep, Effect, Method, Moment, Script},
    state::State,
};

/// The steps that act on one call.
pub(crate) struct Steps<'a> {
    method: Method,
    device: Option<DeviceUuid>,
    acting: Vec<&'a CallStep>,
}

/// True if the script has a step that this call could be for.
pub(crate) fn concerns(script: &Script, method: Method, device: Option<&DeviceUuid>) -> bool {
    script.calls.iter().any(|step| step.matches(method, device))
}

/// Counts a call and says what happens to it. Each step counts the calls that it has seen.
pub(crate) fn count<'a>(
    state: &mut State,
    script: &'a Script,
    method: Method,
    device: Option<&DeviceUuid>,
) -> Steps<'a> {
    let mut acting = Vec::new();
    for step in script.calls.iter().filter(|step| step.matches(method, device)) {
        let seen = state.calls.entry(step.id.clone()).or_default();
        let last = step.nth.saturating_add(step.times - 1);
        if *seen >= last {
            continue; // spent: counting on would only write
        }
        *seen += 1;
        if *seen >= step.nth {
            acting.push(step);
        }
    }
    Steps { method, device: device.cloned(), acting }
}

impl CallStep {
    fn matches(&self, method: Method, device: Option<&DeviceUuid>) -> bool {
        self.method == method && (self.device.is_none() || self.device.as_ref() == device)
    }
}

impl Steps<'_> {
    /// No steps.
    pub(crate) fn none(method: Method) -> Self {
        Self { method, device: None, acting: Vec::new() }
    }

    /// Does what the steps do at that moment, in the order of the script. Holds no lock.
    pub(crate) fn act(&self, at: Moment) -> Result<(), VendorError> {
        for step in self.acting.iter().filter(|step| step.at == at) {
            match &step.effect {
                Effect::Delay(delay) => thread::sleep(*delay),
                Effect::Hang => loop {
                    thread::sleep(Duration::from_hours(1));
                },
                Effect::Error { kind, message } => return Err(self.error(*kind, message)),
            }
        }
        Ok(())
    }

    fn error(&self, kind: CallErrorKind, message: &str) -> VendorError {
        let detail = message.to_owned();
        let call = self.method.as_str();
        match (kind, self.device.clone()) {
            (CallErrorKind::Unsupported, _) => VendorError::Unsupported(detail),
            (CallErrorKind::Library, _) => VendorError::Library(detail),
            (CallErrorKind::UnknownDevice, Some(device)) => VendorError::UnknownDevice(device),
            (CallErrorKind::Occupied, Some(device)) => VendorError::Occupied(device),
            (CallErrorKind::InUse, Some(device)) => VendorError::InUse { device, holder: detail },
            // A call that is for no device fails without one.
            (CallErrorKind::Failed, _)
            | (
                CallErrorKind::UnknownDevice | CallErrorKind::Occupied | CallErrorKind::InUse,
                None,
            ) => VendorError::Failed { call, detail },
        }
    }
}
