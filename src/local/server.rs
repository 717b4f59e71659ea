//! Serves the control socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;

use rustix::process::Signal;
use tokio::net::UnixListener;

use super::control::{Request, Response};
use super::playground::World;
use super::pod::dial;
use super::wire::Channel;

/// Accepts and answers until the playground ends.
pub(crate) async fn serve(listener: OwnedFd, world: Arc<World>) {
    let listener = StdUnixListener::from(listener);
    // A listener of packets, not of a stream: accepting is the same.
    let listener = match listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the control socket cannot be used"),
    };
    loop {
        match listener.accept().await.map(|(stream, _)| Channel::from(stream)) {
            Ok(channel) => {
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    if let Err(error) = answer(&channel, &world).await {
                        tracing::debug!(%error, "a client of the control socket went away");
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "cannot accept on the control socket"),
        }
    }
}

async fn answer(channel: &Channel, world: &World) -> io::Result<()> {
    // The peer is the same user outside: in a user namespace both ids are seen as 0.
    if channel.peer_uid()? != rustix::process::getuid().as_raw() {
        let refusal = "the playground belongs to another user".to_owned();
        return channel.send(&Response::Refused(refusal), &[]).await;
    }
    let Some((request, descriptors)) = channel.receive::<Request>().await? else { return Ok(()) };
    match carry_out(request, descriptors, world, channel).await {
        Ok((response, socket)) => {
            let sockets: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
            channel.send(&response, &sockets).await
        }
        Err(refusal) => channel.send(&Response::Refused(refusal), &[]).await,
    }
}

type Answer = Result<(Response, Option<OwnedFd>), String>;

async fn carry_out(request: Request, descriptors: Vec<OwnedFd>, world: &World, channel: &Channel) -> Answer {
    let done = |socket| Ok((Response::Done, socket));
    match request {
        Request::Exec { pod, argv } => {
            let (pod, sandbox) = world.sandbox(&pod)?;
            let stdio = <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| "exec needs three descriptors".to_owned())?;
            let process = pod.process(pod.spec.containers.first(), argv, &world.machine.setup);
            let mut running = sandbox.run(process, stdio).await.map_err(|e| e.to_string())?;
            loop {
                tokio::select! {
                    code = running.exited() => return Ok((Response::Exited(code), None)),
                    said = channel.receive::<Request>() => match said {
                        Ok(Some((Request::Interrupt, _))) => sandbox.signal(&running, Signal::INT).await,
                        // This is its end, and the command ends with it.
                        _ => {
                            sandbox.signal(&running, Signal::KILL).await;
                            return Err("the client is gone".to_owned());
                        }
                    },
                }
            }
        }
        Request::Interrupt => Err("there is nothing to interrupt".to_owned()),
        Request::Dial { from: Some(pod), to } => {
            let (_, sandbox) = world.sandbox(&pod)?;
            done(Some(sandbox.dial(to).await.map_err(|e| e.to_string())?))
        }
        Request::Dial { from: None, to } => {
            done(Some(dial(to).await.map_err(|e| format!("cannot connect to {to} from the node: {e}"))?))
        }
        Request::Status => Ok((Response::Status(world.status()), None)),
        Request::WaitReady => {
            world.ready().await;
            done(None)
        }
        Request::KillContainer { pod, container } => {
            let pod = world.pod(&pod)?;
            match pod.kill(&container) {
                true => done(None),
                false => Err(format!("pod {} has no container `{container}`", pod.spec.key)),
            }
        }
        Request::KillControlPlane => {
            world.control_plane.kill().await;
            done(None)
        }
        Request::StartControlPlane => {
            world.control_plane.run();
            world.control_plane.ready().await;
            done(None)
        }
        Request::Stop => {
            world.stop.cancel();
            done(None)
        }
    }
}
