//! What a request of the stand-in's daemon is granted.

use accelpool_proto::node::{self as wire, allocation::Portion};

pub(super) fn portion(asked: &wire::Request, partition: Option<&wire::Partition>) -> Portion {
    match (asked.admin, partition, &asked.share) {
        (true, ..) => Portion::Admin(wire::AdminPortion {}),
        (_, Some(partition), _) => Portion::Partition(wire::PartitionPortion {
            name: partition.name.clone(),
            profile: partition.profile.clone(),
            start: partition.start,
            adopted: false,
        }),
        (_, None, Some(share)) => Portion::Share(wire::SharePortion {
            memory_bytes: share.memory_bytes.unwrap_or(80 << 30),
            compute_permille: share.compute_permille.unwrap_or(1000),
            weight: share.weight,
            class: share.class.clone(),
        }),
        (_, None, None) => Portion::Whole(wire::Whole {}),
    }
}
