//! The kubelet's own tracing: the span that a call to a plugin belongs to.

use std::sync::{Mutex, PoisonError};

use tonic::Request;

/// What the kubelet sends with its calls while its tracing is on, which at first it is not.
#[derive(Debug, Default)]
pub struct Caller(Mutex<Option<String>>);

impl Caller {
    /// Has calls from now on belong to this span (`traceparent` of W3C Trace Context).
    pub fn set(&self, traceparent: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(traceparent.to_owned());
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let traceparent = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(value) = traceparent.and_then(|text| text.parse().ok()) {
            request.metadata_mut().insert("traceparent", value);
        }
        request
    }
}
