//! What control does with volumes besides wanting them: snapshots, clones, growth, quotas.

use croft_proto::edge::storage_server::Storage;
use croft_proto::edge::{
    CloneRequest, GrowRequest, SnapshotRequest, StorageDone, StorageListReply, StorageListRequest,
    StoragePolicy, StoredFarm, StoredSnapshot, StoredVolume, VolumeRequest,
};
use croft_proto::{VolumeId, with_causes};
use tonic::{Request, Response, Status};

use super::{EdgeParts, caller};
use crate::storage_policy::PolicyError;
use crate::volume::{CloneSpec, SnapshotName, VolumeError, VolumeInfo, VolumeStore};

pub(super) struct StorageService {
    pub parts: EdgeParts,
}

/// How the names begin that control gives to volumes of members.
const CONTROLS: [&str; 4] = ["root-", "own-", "shared-", "data-"];

type Done = Result<Response<StorageDone>, Status>;

fn parse<T: std::str::FromStr<Err: std::error::Error>>(
    field: &str,
    text: &str,
) -> Result<T, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("{field}: {}", with_causes(&error))))
}

fn refuse(error: &VolumeError) -> Status {
    let text = error.to_string();
    match error {
        VolumeError::NoVolume(_) | VolumeError::NoSnapshot { .. } => Status::not_found(text),
        VolumeError::SnapshotExists { .. } | VolumeError::Conflict { .. } => {
            Status::already_exists(text)
        }
        VolumeError::Size { .. } => Status::invalid_argument(text),
        VolumeError::ReadOnly { .. } | VolumeError::TooDeep { .. } => {
            Status::failed_precondition(text)
        }
        VolumeError::Full { .. } | VolumeError::Quota { .. } => Status::resource_exhausted(text),
        _ => {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "a volume operation failed");
            Status::unavailable(text)
        }
    }
}

impl StorageService {
    /// Runs `step` in a thread that may wait for the disk.
    async fn run<T: Send + 'static>(
        &self,
        step: impl FnOnce(&EdgeParts) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let parts = self.parts.clone();
        let done = tokio::task::spawn_blocking(move || step(&parts)).await;
        done.map_err(|_| Status::internal("the operation was cut off"))?
    }

    async fn change(
        &self,
        step: impl FnOnce(&VolumeStore) -> Result<(), VolumeError> + Send + 'static,
    ) -> Done {
        let step = move |parts: &EdgeParts| step(&parts.volumes).map_err(|error| refuse(&error));
        self.run(step).await.map(|()| Response::new(StorageDone {}))
    }
}

/// Volume and snapshot of a request.
fn names(request: &SnapshotRequest) -> Result<(VolumeId, SnapshotName), Status> {
    Ok((parse("volume", &request.volume)?, parse("snapshot", &request.snapshot)?))
}

/// Whether a node that has the volume has a session, now.
fn in_use(parts: &EdgeParts, id: &VolumeId) -> bool {
    let desired = parts.holder.now();
    parts.sessions.open_sessions().iter().any(|session| {
        let assignment = desired.assignments.get(&session.node);
        assignment.is_none_or(|a| a.root_volume.as_ref() == Some(id) || a.data_volumes.contains(id))
    })
}

fn stored(info: VolumeInfo) -> StoredVolume {
    let snapshots = info.snapshots.into_iter().map(|snapshot| StoredSnapshot {
        name: snapshot.name.to_string(),
        size_bytes: snapshot.size_bytes,
        made_ms: snapshot.made_ms,
    });
    StoredVolume {
        id: info.spec.id.to_string(),
        farm: info.spec.farm.map(String::from).unwrap_or_default(),
        size_bytes: info.spec.size_bytes,
        own_bytes: info.own_bytes,
        snapshot_bytes: info.snapshot_bytes,
        clone: info.is_clone,
        snapshots: snapshots.collect(),
    }
}

#[tonic::async_trait]
impl Storage for StorageService {
    async fn list(
        &self,
        request: Request<StorageListRequest>,
    ) -> Result<Response<StorageListReply>, Status> {
        caller::check(&request)?;
        let farm = |(name, farm): (Option<croft_proto::FarmName>, crate::volume::FarmUsage)| {
            let name = name.map(String::from).unwrap_or_default();
            StoredFarm { farm: name, used_bytes: farm.used }
        };
        let list = move |parts: &EdgeParts| {
            let volumes = parts.volumes.list().into_iter().map(stored).collect();
            let farms = parts.volumes.farms().into_iter().map(farm).collect();
            Ok(StorageListReply { volumes, farms })
        };
        self.run(list).await.map(Response::new)
    }

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Done {
        caller::check(&request)?;
        let (volume, snapshot) = names(request.get_ref())?;
        self.change(move |volumes| volumes.snapshot(&volume, &snapshot)).await
    }

    async fn delete_snapshot(&self, request: Request<SnapshotRequest>) -> Done {
        caller::check(&request)?;
        let (volume, snapshot) = names(request.get_ref())?;
        self.change(move |volumes| volumes.delete_snapshot(&volume, &snapshot)).await
    }

    async fn rollback(&self, request: Request<SnapshotRequest>) -> Done {
        caller::check(&request)?;
        let (volume, snapshot) = names(request.get_ref())?;
        let roll = move |parts: &EdgeParts| {
            if in_use(parts, &volume) {
                let text = format!("volume {volume} is in use: end its sessions first");
                return Err(Status::failed_precondition(text));
            }
            parts.volumes.rollback(&volume, &snapshot).map_err(|error| refuse(&error))
        };
        self.run(roll).await.map(|()| Response::new(StorageDone {}))
    }

    async fn clone_snapshot(&self, request: Request<CloneRequest>) -> Done {
        caller::check(&request)?;
        let request = request.into_inner();
        let farm = &request.farm;
        let spec = CloneSpec {
            id: parse("id", &request.id)?,
            source: parse("volume", &request.volume)?,
            snapshot: parse("snapshot", &request.snapshot)?,
            farm: if farm.is_empty() { None } else { Some(parse("farm", farm)?) },
        };
        if CONTROLS.iter().any(|kind| spec.id.as_str().starts_with(kind)) {
            let text = "volume: root-, own-, shared- and data- begin the names of members' volumes: \
                        choose another, or a member would find the clone in its place";
            return Err(Status::invalid_argument(text));
        }
        self.change(move |volumes| volumes.clone_snapshot(&spec)).await
    }

    async fn delete_clone(&self, request: Request<VolumeRequest>) -> Done {
        caller::check(&request)?;
        let id: VolumeId = parse("volume", &request.get_ref().volume)?;
        let delete = move |parts: &EdgeParts| {
            let no = |what| Err(Status::failed_precondition(format!("volume {id} {what}")));
            let list = parts.volumes.list();
            match list.iter().find(|info| info.spec.id == id) {
                None => return Ok(()),
                Some(info) if !info.is_clone => return no("is no clone"),
                Some(_) => {}
            }
            if parts.holder.now().volumes.contains_key(&id) {
                return no("is listed in the desired state");
            }
            parts.volumes.delete(&id).map_err(|error| refuse(&error))
        };
        self.run(delete).await.map(|()| Response::new(StorageDone {}))
    }

    async fn grow(&self, request: Request<GrowRequest>) -> Done {
        caller::check(&request)?;
        let (id, size) =
            (parse("volume", &request.get_ref().volume)?, request.get_ref().size_bytes);
        self.change(move |volumes| volumes.grow(&id, size)).await
    }

    async fn set_policy(&self, request: Request<StoragePolicy>) -> Done {
        caller::check(&request)?;
        let policy = request.into_inner();
        let set = move |parts: &EdgeParts| {
            parts.policy.set(&policy).map_err(|error| match error {
                PolicyError::Faulty(_) => Status::invalid_argument(error.to_string()),
                PolicyError::NotKept(_) | PolicyError::Damaged { .. } => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "a storage policy was not taken");
                    Status::unavailable(error.to_string())
                }
            })
        };
        self.run(set).await.map(|()| Response::new(StorageDone {}))
    }
}
