// Sum and maximum over a workgroup of WG invocations; every invocation gets the result.
// ONE_SUBGROUP: WG is at most the subgroup size, so no barrier is needed.
// SUBGROUPS: any subgroup size. Otherwise a tree in workgroup memory.

#if ONE_SUBGROUP
fn group_sum(ids: Ids, v: f32) -> f32 {
    return subgroupAdd(v);
}
fn group_max(ids: Ids, v: f32) -> f32 {
    return subgroupMax(v);
}
#else
var<workgroup> partial: array<f32, ${WG}>;
#if SUBGROUPS
fn group_sum(ids: Ids, v: f32) -> f32 {
    let s = subgroupAdd(v);
    workgroupBarrier();
    if ids.lane == 0u {
        partial[ids.sub] = s;
    }
    workgroupBarrier();
    var total = partial[0];
    for (var i = 1u; i < ids.subs; i++) {
        total += partial[i];
    }
    return total;
}
fn group_max(ids: Ids, v: f32) -> f32 {
    let s = subgroupMax(v);
    workgroupBarrier();
    if ids.lane == 0u {
        partial[ids.sub] = s;
    }
    workgroupBarrier();
    var total = partial[0];
    for (var i = 1u; i < ids.subs; i++) {
        total = max(total, partial[i]);
    }
    return total;
}
#else
fn group_sum(ids: Ids, v: f32) -> f32 {
    workgroupBarrier();
    partial[ids.lid] = v;
    workgroupBarrier();
    for (var s = ${WG}u / 2u; s > 0u; s = s / 2u) {
        if ids.lid < s {
            partial[ids.lid] += partial[ids.lid + s];
        }
        workgroupBarrier();
    }
    return partial[0];
}
fn group_max(ids: Ids, v: f32) -> f32 {
    workgroupBarrier();
    partial[ids.lid] = v;
    workgroupBarrier();
    for (var s = ${WG}u / 2u; s > 0u; s = s / 2u) {
        if ids.lid < s {
            partial[ids.lid] = max(partial[ids.lid], partial[ids.lid + s]);
        }
        workgroupBarrier();
    }
    return partial[0];
}
#endif
#endif
