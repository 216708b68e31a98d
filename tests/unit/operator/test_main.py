"""How the process of the operator ends."""

import vllmendpoint_operator.main as main
from vllmendpoint_operator.settings import Settings


def test_missing_credentials_end_the_process_with_their_cause(monkeypatch, tmp_path, caplog):
    kubeconfig = tmp_path / "missing"
    options = [
        "--worker-image=x",
        "--frontend-image=y",
        "--metrics-port=0",
        "--health-port=0",
        f"--kubeconfig={kubeconfig}",
    ]
    settings = Settings(_cli_parse_args=options)
    monkeypatch.setenv("KUBECONFIG", "restored after the test")
    monkeypatch.setattr(main, "Settings", lambda: settings)
    monkeypatch.setattr(main, "configure", lambda *options: None)
    monkeypatch.setattr(main.gc, "freeze", lambda: None)
    monkeypatch.setattr(main.gc, "set_threshold", lambda *numbers: None)
    assert main.main() == 1
    assert f"Cannot read {kubeconfig}: " in caplog.records[-1].error
