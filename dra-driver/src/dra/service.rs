//! The kubelet's two versions of the service, each a thin coat over [`Claims`].

use std::collections::HashMap;

use accelpool_cluster::ClaimReference;
use accelpool_proto::kubelet::dra::{v1, v1beta1};
use tonic::{Request, Response, Status};

use super::{Claims, PreparedDevice};
use crate::otel::caller;

/// Serves version v1.
pub struct V1(pub Claims);

/// Serves version v1beta1, which has no share ids.
pub struct V1beta1(pub Claims);

/// The two versions differ in nothing but their packages and one field.
macro_rules! serve {
    ($type:ident, $version:ident, $device:expr) => {
        #[tonic::async_trait]
        impl $version::dra_plugin_server::DraPlugin for $type {
            async fn node_prepare_resources(
                &self,
                request: Request<$version::NodePrepareResourcesRequest>,
            ) -> Result<Response<$version::NodePrepareResourcesResponse>, Status> {
                let caller = caller(request.metadata());
                let claims = request.into_inner().claims.into_iter().map(|claim| {
                    let $version::Claim { namespace, uid, name } = claim;
                    ClaimReference { namespace, name, uid }
                });
                let answers = self.0.prepare(claims.collect(), caller).await.into_iter();
                let claims: HashMap<_, _> = answers
                    .map(|(uid, answer)| {
                        let (devices, error) = split(answer);
                        let devices = devices.into_iter().map($device).collect();
                        (uid, $version::NodePrepareResourceResponse { devices, error })
                    })
                    .collect();
                Ok(Response::new($version::NodePrepareResourcesResponse { claims }))
            }

            async fn node_unprepare_resources(
                &self,
                request: Request<$version::NodeUnprepareResourcesRequest>,
            ) -> Result<Response<$version::NodeUnprepareResourcesResponse>, Status> {
                let caller = caller(request.metadata());
                let claims = request.into_inner().claims.into_iter().map(|claim| {
                    let $version::Claim { namespace, uid, name } = claim;
                    ClaimReference { namespace, name, uid }
                });
                let answers = self.0.unprepare(claims.collect(), caller).await.into_iter();
                let claims: HashMap<_, _> = answers
                    .map(|(uid, answer)| {
                        let ((), error) = split(answer);
                        (uid, $version::NodeUnprepareResourceResponse { error })
                    })
                    .collect();
                Ok(Response::new($version::NodeUnprepareResourcesResponse { claims }))
            }
        }
    };
}

serve!(V1, v1, |device: PreparedDevice| v1::Device {
    request_names: vec![device.request],
    pool_name: device.pool,
    device_name: device.device,
    cdi_device_ids: vec![device.cdi_id],
    share_id: device.share_id,
});

serve!(V1beta1, v1beta1, |device: PreparedDevice| v1beta1::Device {
    request_names: vec![device.request],
    pool_name: device.pool,
    device_name: device.device,
    cdi_device_ids: vec![device.cdi_id],
});

/// The wire has a value and an error text, of which one is empty.
fn split<T: Default>(answer: Result<T, String>) -> (T, String) {
    match answer {
        Ok(value) => (value, String::new()),
        Err(error) => (T::default(), error),
    }
}
