//! stub
pub trait Disk: Send + Sync {}
pub struct RealDisk;
impl Disk for RealDisk {}
