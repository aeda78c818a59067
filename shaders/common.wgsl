// What every entry point receives, and the linear index of its workgroup: grids of more than 65,535
// workgroups are folded to two dimensions, so the last row of the grid may hold indices past the end.

struct Ids {
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
#if SUBGROUPS
    @builtin(subgroup_id) sub: u32,
    @builtin(num_subgroups) subs: u32,
    @builtin(subgroup_invocation_id) lane: u32,
#endif
}

fn group_index(ids: Ids) -> u32 {
    return ids.wid.x + ids.wid.y * ids.nwg.x;
}

// Index of this invocation among all, for element-wise shaders of workgroup size WG.
fn thread_index(ids: Ids) -> u32 {
    return group_index(ids) * ${WG}u + ids.lid;
}
