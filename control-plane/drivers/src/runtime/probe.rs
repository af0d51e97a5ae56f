pub async fn check(_spec: &meshctl_model::instance::InstanceSpec) -> Result<(), String> {
    Ok(())
}
