module github.com/hotdeploy/hotdeploy/testdata/apps/mqttbroker

go 1.26.0

replace github.com/hotdeploy/hotdeploy => ../../..

require (
	github.com/eclipse/paho.golang v0.23.0
	github.com/eclipse/paho.mqtt.golang v1.5.1
	github.com/hotdeploy/hotdeploy v0.0.0-00010101000000-000000000000
	github.com/mochi-mqtt/server/v2 v2.7.9
)

require (
	github.com/cloudflare/tableflip v1.2.3 // indirect
	github.com/gorilla/websocket v1.5.3 // indirect
	github.com/rs/xid v1.4.0 // indirect
	golang.org/x/net v0.44.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
